"""The order of events of a training run."""

import errno
import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from ..config import dump
from ..config.files import load
from ..evaluation import Robustness
from ..evaluation._where import command_line
from ..files import write_text
from ..methods import Frozen, method_class, method_name
from . import checkpoint
from .accelerator import check_launch, process, start, where
from .companions import COMPANIONS, Companion
from .config import ModelConfig, TrainConfig
from .finish import announce, finish
from .lock import locked
from .log import Log
from .loop import Interrupted, Loop
from .recipe import VARIANTS
from .session import Session, prepare


def train(config: TrainConfig, companions: Sequence[type[Companion]] = ()) -> list[Robustness]:
    """Train by `config`, export and evaluate; then its twin, if it has one. The results, the model's own first.

    Args:
        companions: Further ones than `COMPANIONS`, for an analysis of one's own for example; their hooks run last.

    Raises:
        Interrupted: a signal came; its text is the run's folder, and empty where there is no checkpoint yet.
        ValueError: the configuration cannot be used.
    """
    check_launch()
    kinds = (*COMPANIONS, *companions)
    for kind in kinds:
        kind.check(config)
    for each in both(config):
        method_class(method_name(each.method)).check_teacher(each.method, bool(each.teacher.name))
    if config.resume and not config.output:
        raise ValueError("resume: of which run? Name its folder: --resume runs/NAME")
    output = config.output or _folder(config)
    config = replace(config, output=output)
    try:
        results = [_run(each, kinds) for each in both(config)]
    except (Interrupted, KeyboardInterrupt):
        # In the loop a signal leaves a checkpoint first; after it, the evaluation keeps its own state.
        raise Interrupted(output if checkpoint.newest(Path(output) / "checkpoints") else "") from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        way_out = f"free some, and `--resume {output}` in the place of all other words goes on"
        raise OSError(errno.ENOSPC, f"no space left in {output}: {way_out}") from error
    # Once, and last: the twin needs the process group too.
    PartialState().destroy_process_group()
    return results


def _run(config: TrainConfig, companions: Sequence[type[Companion]]) -> Robustness:
    folder = Path(config.output or "")
    newest = checkpoint.newest(folder / "checkpoints")
    if config.resume and newest is None:
        raise ValueError(f"{folder} holds no checkpoint to resume from: leave --resume out to begin")
    if not config.resume and (newest or (folder / "summary.jsonl").exists()):
        raise ValueError(f"{folder} holds a run already: go on with it by --resume {folder}, or name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = start(config, folder)
    with locked(folder, accelerator.is_main_process):
        try:
            return _train(config, companions, folder, accelerator, newest if config.resume else None)
        except BaseException:
            if accelerator.is_main_process:
                _remove_if_empty(folder)
            raise


def _remove_if_empty(folder: Path) -> None:
    """Nothing is left of a run that ended before it began, but for the reason that its user reads."""
    if not any(path.is_file() and path.name != ".lock" for path in folder.rglob("*")):
        shutil.rmtree(folder)


def _train(
    config: TrainConfig,
    companions: Sequence[type[Companion]],
    folder: Path,
    accelerator: Accelerator,
    newest: Path | None,
) -> Robustness:
    """Train in `folder`, from the checkpoint `newest` if there is one."""
    log = Log(accelerator, folder, config.log_every)
    session = prepare(config, folder, accelerator, companions, log.say)
    checkpoint.check_room(session)
    position = checkpoint.load(session, log, newest) if newest else checkpoint.Position()
    longer = _check_epochs(config, folder, position) if newest else ""
    if accelerator.is_main_process:
        # A recipe for whoever wants the same again: where it ran is not part of it.
        recipe = dump(replace(config, output=None, resume=False), variants=VARIANTS)
        write_text(folder / "config.yaml", recipe)
        with (folder / "command.txt").open("a") as file:
            file.write(command_line() + "\n")
    if config.trackers:
        accelerator.init_trackers(
            "timm_arat", config={"method": method_name(config.method), "model": config.model.name}
        )
    parameters = sum(p.numel() for p in session.method.model.parameters())
    height, width = session.data.size
    log.say(
        f"{method_name(config.method)} on {config.data.name}: {config.model.name}, {parameters / 1e6:.2f} M weights, "
        f"{len(session.images)} training images of {height}x{width} pixels in "
        f"{session.data.num_classes} classes, "
        f"{len(session.loader)} steps an epoch; {where(accelerator)}; to {folder}"
    )
    for note in filter(None, (*config.notes(), *session.data.notes, announce(session), _random_teacher(session))):
        log.say(note)
    if newest:
        log.say(f"resumed from {newest}{longer}")
    Loop(session, log, position).run()
    results = finish(session, log)
    for tracker in accelerator.trackers:
        tracker.finish()
    return results


def _check_epochs(config: TrainConfig, folder: Path, position: checkpoint.Position) -> str:
    """ValueError where a run is to end before where it stands; what to say where it is to end elsewhere than before."""
    if (position.epoch, position.step) > (config.epochs, 0):
        done = f"{position.epoch} epochs" + (f" and {position.step} steps" if position.step else "")
        raise ValueError(
            f"epochs={config.epochs}: {folder} is trained for {done} already; give at least "
            f"{position.epoch + bool(position.step)}"
        )
    before = load(folder / "config.yaml").get("epochs") if (folder / "config.yaml").is_file() else None
    if before in (None, config.epochs) or config.optimizer.schedule in ("constant", "none"):
        return ""
    return (
        f"; to {config.epochs} epochs in the place of {before}: the {config.optimizer.schedule} schedule is now over "
        "these, so the learning rate goes on from another value than it ended at"
    )


def _random_teacher(session: Session) -> str:
    """What a person should know of a teacher that knows nothing and does not learn."""
    name, teacher = session.config.teacher.name, getattr(session.method, "teacher", None)
    if not isinstance(teacher, Frozen) or session.config.teacher.pretrained:
        return ""
    return f"WARNING: the teacher {name} has random weights and is not trained: set teacher.pretrained for its weights"


def both(config: TrainConfig) -> Iterator[TrainConfig]:
    """The run, and its twin if it has one; of the two, those that have a use for the teacher get it."""
    if config.twin is None:
        yield config
        return
    twin = twin_of(config)
    yield replace(config, teacher=ModelConfig(name="")) if twin.teacher.name and not _needs_teacher(config) else config
    yield twin


def twin_of(config: TrainConfig) -> TrainConfig:
    """The run of the twin, with the teacher only where it has a use for one."""
    output = f"{config.output}/twin"
    # A run that was stopped before its twin began has nothing there to resume from.
    resume = config.resume and checkpoint.newest(Path(output) / "checkpoints") is not None
    twin = replace(config, method=config.twin, twin=None, output=output, resume=resume)
    return twin if _needs_teacher(twin) else replace(twin, teacher=ModelConfig(name=""))


def _needs_teacher(config: TrainConfig) -> bool:
    return method_class(method_name(config.method)).needs_teacher(config.method)


def _folder(config: TrainConfig) -> str:
    """A new folder under runs/, made here so that no other run takes it; with several processes by the main one."""
    name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{method_name(config.method)}-{config.model.name.replace('/', '_')}"
    found = [name]
    if process().is_main_process:
        for number in itertools.count(2):
            try:
                Path(found[0]).mkdir(parents=True)
                break
            except FileExistsError:
                found = [f"{name}-{number}"]
    broadcast_object_list(found)
    return found[0]
