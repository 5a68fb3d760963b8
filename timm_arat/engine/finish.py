"""After the last epoch: export the best weights and measure them, once, on the test set."""

import hashlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate.utils import gather_object
from torch import nn

from ..evaluation import AttackName, Robustness, evaluate, fingerprint, merge, open_model
from ..evaluation._autoattack import STANDARD, describe
from ..evaluation._where import device_name, versions
from ..hub import export
from ..methods import method_name
from ..norm import is_split, merge_split_norm
from . import weights
from .best import best_epoch
from .config import TrainConfig
from .log import Log
from .model import weights_name
from .session import Session
from .signals import Launcher


def finish(session: Session, log: Log) -> Robustness:
    """Export to the run's model/, evaluate on the test set, write results.json; returns the results of the best.

    The last weights are measured beside the best ones, without AutoAttack, into results_last.json.
    """
    config, folder, accelerator = session.config, session.folder, session.accelerator
    chosen = _load(session, folder / "weights" / "best.safetensors")
    if accelerator.is_main_process:
        facts: dict[str, Any] = {"training": _facts(session) | _averaged(config, log)}
        # Numbers too, where folders are called so: another split may lack one of them.
        facts["label_names"] = list(session.data.class_names)
        export(chosen, folder / "model", model_args=config.model.kwargs, half=config.half, **facts)
    accelerator.wait_for_everyone()
    attacks = config.evaluation.attacks
    which = "best" if session.validation is not None else "last"  # without held-out images nothing tells the best
    log.say(f"measuring the {which} weights on the test images: {', '.join(attacks)}")
    # The exported model, not the trained one: its layers are timm's own, and results.json names it by its hash.
    results = _measure(session, log, folder / "model", attacks, "results")
    if session.validation is not None:
        last = _load(session, folder / "weights" / "last.safetensors")
        last = merge_split_norm(last) if is_split(last) else last
        quick = tuple(name for name in attacks if name != "autoattack")
        _measure(session, log, last, quick, "results_last")
    architecture: Any = chosen.pretrained_cfg
    ours = timm.model_entrypoint(architecture["architecture"]).__module__.startswith("timm_arat.")
    log.say(
        f"exported to {folder / 'model'}: timm.create_model('local-dir:{folder / 'model'}', pretrained=True)"
        + (", after import timm_arat" if ours else "")
    )
    return results


def announce(session: Session) -> str:
    """What a person should know of the test before the training: that AutoAttack has no standard version here."""
    attacks, classes = session.config.evaluation.attacks, session.data.num_classes
    version = describe(classes, [str(session.config.evaluated().norm)])
    if "autoattack" not in attacks or version.startswith(STANDARD):
        return ""
    return f"with {classes} classes the AutoAttack at the end is {version}"


def _load(session: Session, path: Path) -> nn.Module:
    """The backbone with the weights at `path`, both branches."""
    model = deepcopy(session.method.model)
    weights.load(model, path)
    return model


def _measure(
    session: Session, log: Log, model: Path | nn.Module, attacks: tuple[AttackName, ...], name: str
) -> Robustness:
    """Evaluate each process's share of the test images and merge; the file is written by the main process."""
    config, accelerator, images = session.config, session.accelerator, session.data.test
    cfg: Any = session.method.model.pretrained_cfg
    assert images is not None
    settings = replace(config.evaluated(), attacks=attacks)
    # By weights, settings, libraries: a run that was extended, or is evaluated anew, goes on with no other measurement.
    of = fingerprint(open_model(model, accelerator.device)[0])[:8]
    by = _digest([settings, versions(), device_name(accelerator.device)])
    state = session.folder / f".{name}-{of}-{by}"
    share = range(accelerator.process_index, len(images), accelerator.num_processes)
    part = evaluate(
        model,
        images,
        settings,
        state=state.with_suffix(f".{accelerator.process_index}-of-{accelerator.num_processes}.state"),
        indices=share if accelerator.num_processes > 1 else None,
        name=f"{cfg['architecture']} {method_name(config.method)}",
        progress=_tell(log) if accelerator.is_main_process else False,
        device=accelerator.device,
    )
    result = merge(gather_object([part])) if accelerator.num_processes > 1 else part
    if accelerator.is_main_process:
        result.save(session.folder / f"{name}.json")
    return result


def _tell(log: Log) -> Callable[[str], None]:
    """A line of the evaluation into the log; where the launcher is gone, the evaluation is given up, to be resumed."""
    launcher = Launcher()

    def tell(line: str) -> None:
        log.say(line)
        if launcher.gone:
            raise KeyboardInterrupt

    return tell


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def _averaged(config: TrainConfig, log: Log) -> dict[str, object]:
    """Of how many steps the exported weights are an average, where the run has one."""
    if config.average.kind == "none":
        return {}
    rows = log.rows()
    chosen = best_epoch(rows, config.validation.select)
    row = next(row for row in rows if row["epoch"] == chosen)
    if not row["averaged_updates"]:
        log.say(
            f"WARNING: the best epoch, {row['epoch']}, comes before the first step that goes into the average "
            f"({config.average.kind}): the exported weights are those of the training itself, not averaged"
        )
    return {"average": config.average.kind, "averaged_updates": row["averaged_updates"]}


def _facts(session: Session) -> dict[str, object]:
    """What config.json says of the training: whose weights went into it, and what, with its time, it cost."""
    config, accelerator = session.config, session.accelerator
    sources = {"started_from": config.model, "teacher": config.teacher}
    return {key: weights_name(each.name) for key, each in sources.items() if each.name and each.pretrained} | {
        "method": method_name(config.method),
        "data": config.data.name,
        "epochs": config.epochs,
        "seed": config.seed,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": accelerator.device.type,
    }
