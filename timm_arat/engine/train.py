"""The order of events of a training run."""

import errno
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..config import dump
from ..evaluation import Robustness
from .config import VARIANTS, TrainConfig, method_name
from .finish import finish
from .log import Log
from .loop import Interrupted, Loop
from .prepare import prepare


def train(config: TrainConfig) -> list[Robustness]:
    """Train by `config`, export and evaluate; then its twin, if it has one. The results, the model's own first.

    Raises:
        Interrupted: a signal came; the run's folder, which is the message, resumes.
        ValueError: the configuration cannot be used.
    """
    output = config.output or _folder(config)
    config = replace(config, output=output)
    try:
        results = [_run(config)]
        if config.twin is not None:
            warm_start = config.warm_start and hasattr(config.twin, "attack")
            twin = replace(config, method=config.twin, twin=None, output=str(Path(output) / "twin"))
            results.append(_run(replace(twin, warm_start=warm_start)))
    except (Interrupted, KeyboardInterrupt):
        # In the loop a signal leaves a checkpoint first; after it, the evaluation keeps its own state.
        raise Interrupted(output) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        way_out = f"free some, and the same command with --output {output} --resume true goes on"
        raise OSError(errno.ENOSPC, f"no space left in {output}: {way_out}") from error
    # Once, and last: the twin needs the process group too.
    PartialState().destroy_process_group()
    return results


def _run(config: TrainConfig) -> Robustness:
    folder = Path(config.output or "")
    if not config.resume and (folder / "summary.jsonl").exists():
        raise ValueError(f"{folder} holds a run already: add --resume true to go on with it, or name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    session = prepare(config, folder)
    accelerator = session.accelerator
    log = Log(accelerator, folder, config.log_every)
    if accelerator.is_main_process:
        (folder / "config.yaml").write_text(dump(config, variants=VARIANTS))
        with (folder / "command.txt").open("a") as file:
            file.write(shlex.join(sys.argv) + "\n")
    if config.trackers:
        accelerator.init_trackers(
            "timm_arat", config={"method": method_name(config.method), "model": config.model.name}
        )
    parameters = sum(p.numel() for p in session.method.model.parameters())
    log.say(
        f"{method_name(config.method)} on {config.data.name}: {config.model.name}, {parameters / 1e6:.2f} M weights, "
        f"{len(session.images)} training images, {len(session.loader)} steps an epoch; {_where(session)}; "
        f"to {folder}"
    )
    Loop(config, session, folder, log).run()
    results = finish(config, session, folder, log)
    for tracker in accelerator.trackers:
        tracker.finish()
    return results


def _where(session: object) -> str:
    """Where the training runs, for the first line of the log."""
    accelerator = session.accelerator  # type: ignore[attr-defined]
    processes = f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''}"
    threads = f" of {torch.get_num_threads()} threads" if accelerator.device.type == "cpu" else ""
    return f"{processes}{threads} on {accelerator.device.type}, mixed precision {accelerator.mixed_precision}"


def _folder(config: TrainConfig) -> str:
    """A new folder under runs/; with several processes, the main one's clock decides."""
    name = [f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{method_name(config.method)}-{config.model.name.replace('/', '_')}"]
    broadcast_object_list(name)
    return name[0]
