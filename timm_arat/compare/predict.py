"""Passes an image and hours of each row, measured on a few steps: `python -m timm_arat.compare.predict FILE ...`."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..attacks import PGD
from ..config import cli
from ..data import Data
from ..engine.accelerator import start
from ..engine.checkpoint import Position
from ..engine.companions import COMPANIONS, Batch
from ..engine.config import TrainConfig
from ..engine.log import Log
from ..engine.loop import Loop
from ..engine.model import build_model
from ..engine.session import Session, prepare
from ..files import write_atomically
from .config import Run, read_comparison, runs_of
from .passes import counted
from .prediction import FILE, Passes, Prediction, digest, load, threads_of

TIMED = 3  # steps, after one that warms up
COUNTED = 4  # images
# Of an image that withstands AutoAttack's standard version: steps, a forward and a backward pass each, of APGD-CE, of
# APGD-T and FAB-T with nine targets each, and Square's 5,000 queries, which are forward passes, a third of a step.
STANDARD_STEPS = 100 + 900 + 900 + 5000 / 3
WITHSTAND = 0.5  # share of the images that is taken to; the others fall to APGD-CE


@cli
def main() -> None:
    """Measure each row that has no prediction yet, and write all into the comparison's folder."""
    comparison = read_comparison(sys.argv[1:])
    folder = Path(comparison.output)
    known, found = load(folder), {}
    data: Data | None = None
    for run in (each for each in runs_of(comparison) if each.seed == comparison.seeds[0]):
        threads = threads_of(run.config, comparison.jobs)
        of = digest(_stand_alone(run), threads)
        if run.row in known and known[run.row].of == of:
            found[run.row] = known[run.row]
            continue
        config = replace(_stand_alone(run), threads=threads)
        data = data or build_model(config)[1]  # one for all rows: it belongs to the protocol
        found[run.row] = predict(config, data, of)
        _save(found, folder)
    _save(found, folder)


def predict(config: TrainConfig, data: Data, of: str = "") -> Prediction:
    """Measure a few steps of `config`, of its last epoch, and count those of every kind of epoch that it has."""
    with TemporaryDirectory() as folder:
        session = _session(config, Path(folder), data)
        loop = Loop(session, Log(session.accelerator, Path(folder), config.log_every), Position())
        batch = _batch(session)
        passes = _passes(loop, batch)
        loop.try_steps(config.epochs - 1, [batch])
        seconds = _timed(session, lambda: loop.try_steps(config.epochs - 1, [batch] * TIMED)) / TIMED
        last = passes[config.epochs - 1].cost
        mean = Passes(
            sum(each.forward for each in passes) / len(passes), sum(each.backward for each in passes) / len(passes)
        )
        steps = config.epochs * len(session.loader)
        return Prediction(mean, steps * seconds * mean.cost / last, _measuring(session, batch), of)


def _session(config: TrainConfig, folder: Path, data: Data) -> Session:
    accelerator = start(config, folder)
    return prepare(config, folder, accelerator, COMPANIONS, lambda text: None, data)


def _batch(session: Session) -> Batch:
    x, *rest = next(iter(session.loader))
    return Batch(x.contiguous(memory_format=torch.channels_last), *rest)


def _passes(loop: Loop, batch: Batch) -> list[Passes]:
    """Of each epoch, an image: counted once for every number of attack steps and state of the weight perturbation."""
    config = loop.config
    few = batch._replace(**{name: each[:COUNTED] for name, each in batch._asdict().items() if each is not None})
    known: dict[tuple[int, bool], Passes] = {}
    found = []
    for epoch in range(config.epochs):
        kind = config.attack.at_epoch(epoch).steps, epoch >= config.awp.start_epoch
        if kind not in known:
            loop.try_steps(epoch, [])  # what an epoch begins with is no part of its steps
            with counted(loop.method) as total:
                loop.try_steps(epoch, [few], begun=True)
            known[kind] = total.per(len(few.x))
        found.append(known[kind])
    return found


def _measuring(session: Session, batch: Batch) -> float:
    """Seconds of all measurements of a run, from those of a few attack steps in evaluation's float32."""
    config, attack = session.config, PGD(norm=session.config.attack.norm, eps=session.config.attack.radius, steps=TIMED)
    y = batch.y.argmax(-1) if batch.y.ndim == 2 else batch.y
    step = _timed(session, lambda: attack(session.method.network, batch.x, y)) / TIMED / len(y)
    held_out = 0 if session.validation is None else len(session.validation[1])
    test = len(session.data.test) if session.data.test is not None else 0
    settings = config.evaluation
    steps = config.epochs * held_out * config.validation.steps
    if "pgd" in settings.attacks:
        steps += 2 * min(test, settings.pgd_images or test) * 20  # the best weights and the last ones
    if "autoattack" in settings.attacks:
        mean = WITHSTAND * STANDARD_STEPS + (1 - WITHSTAND) * 100
        steps += int(min(test, settings.autoattack_images or test) * mean)
    return steps * step


def _timed(session: Session, work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    if session.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - started


def _stand_alone(run: Run) -> TrainConfig:
    """The run with an untrained network in the place of a teacher that another row has yet to train."""
    return replace(run.config, teacher=replace(run.config.model, pretrained=False)) if run.after else run.config


def _save(found: Mapping[str, Prediction], folder: Path) -> None:
    text = json.dumps({name: asdict(each) for name, each in found.items()}, indent=1)
    write_atomically(folder / FILE, lambda aside: aside.write_text(text))


if __name__ == "__main__":
    main()
