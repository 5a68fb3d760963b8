"""The order of events of a training run."""

import errno
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..config import dump
from ..evaluation import Robustness
from ..methods import method_class, method_name
from .accelerator import start, where
from .companions import COMPANIONS, Companion
from .config import VARIANTS, ModelConfig, TrainConfig
from .finish import finish
from .log import Log
from .loop import Interrupted, Loop
from .session import prepare


def train(config: TrainConfig, companions: Sequence[type[Companion]] = ()) -> list[Robustness]:
    """Train by `config`, export and evaluate; then its twin, if it has one. The results, the model's own first.

    Args:
        companions: Further ones than `COMPANIONS`, for an analysis of one's own for example; their hooks run last.

    Raises:
        Interrupted: a signal came; the run's folder, which is the message, resumes.
        ValueError: the configuration cannot be used.
    """
    kinds = (*COMPANIONS, *companions)
    for kind in kinds:
        kind.check(config)
    output = config.output or _folder(config)
    config = replace(config, output=output)
    try:
        results = [_run(config, kinds)]
        if config.twin is not None:
            results.append(_run(_twin(config), kinds))
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


def _run(config: TrainConfig, companions: Sequence[type[Companion]]) -> Robustness:
    folder = Path(config.output or "")
    if not config.resume and (folder / "summary.jsonl").exists():
        raise ValueError(f"{folder} holds a run already: add --resume true to go on with it, or name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = start(config, folder)
    log = Log(accelerator, folder, config.log_every)
    session = prepare(config, folder, accelerator, companions, log.say)
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
        f"{len(session.images)} training images, {len(session.loader)} steps an epoch; {where(accelerator)}; "
        f"to {folder}"
    )
    Loop(session, log).run()
    results = finish(session, log)
    for tracker in accelerator.trackers:
        tracker.finish()
    return results


def _twin(config: TrainConfig) -> TrainConfig:
    """The run of the twin, with the teacher only where it has a use for one."""
    needed = method_class(method_name(config.twin)).needs_teacher(config.twin)
    teacher = config.teacher if needed else ModelConfig(name="")
    return replace(config, method=config.twin, twin=None, teacher=teacher, output=f"{config.output}/twin")


def _folder(config: TrainConfig) -> str:
    """A new folder under runs/; with several processes, the main one's clock decides."""
    name = [f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{method_name(config.method)}-{config.model.name.replace('/', '_')}"]
    broadcast_object_list(name)
    return name[0]
