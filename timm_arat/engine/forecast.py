"""What a run will cost, from a few of its steps: passes, operations, seconds, memory and disk."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..attacks import PGD
from ..data import Data
from .accelerator import check_launch, start
from .checkpoint import Position, room_for
from .companions import COMPANIONS, Batch
from .companions.warm_start import WarmStart
from .config import AnalysisConfig, TrainConfig
from .costs import Forecast, Passes
from .log import Log
from .loop import Loop
from .passes import counted
from .session import Session, prepare

TIMED = 3  # steps, after one that warms up
COUNTED = 4  # images
SOME = 16  # images of a step whose operations are counted, and that is timed on a CPU: the others take as long
# Of an image that withstands AutoAttack's standard version: steps, a forward and a backward pass each, of APGD-CE, of
# APGD-T and FAB-T with nine targets each, and Square's 5,000 queries, which are forward passes, a third of a step.
STANDARD_STEPS = 100 + 900 + 900 + 5000 / 3
WITHSTAND = 0.5  # share of the images that is taken to; the others fall to APGD-CE


def forecast(config: TrainConfig, data: Data | None = None) -> Forecast:
    """Measure a few steps of `config`, of its last epoch, and count those of every kind of epoch that it has.

    Left out are analyses, which come at the first step, which is measured, and then every so many; what a guard
    measures; the statistics of an average; and what compiling saves.

    Args:
        data: The data set of `config`, where it is open already.

    Raises:
        ValueError: the configuration cannot be used, as `train` would say.
    """
    check_launch()
    for kind in COMPANIONS:
        kind.check(config)
    config = replace(config, analysis=AnalysisConfig())
    with TemporaryDirectory() as own:
        accelerator = start(config, Path(own))
        (folder,) = broadcast_object_list([own])  # a warm start's files are shared
        session = prepare(config, Path(folder), accelerator, COMPANIONS, lambda text: None, data)
        loop = Loop(session, Log(session.accelerator, Path(folder), config.log_every), Position())
        batch = _batch(session)
        passes = _passes(loop, batch)
        some = _first(batch, SOME)
        flops, held = _step(loop, some)
        timed = some if session.accelerator.device.type == "cpu" else batch
        loop.try_steps(config.epochs - 1, [timed], begun=True)
        seconds = _timed(session, lambda: loop.try_steps(config.epochs - 1, [timed] * TIMED, begun=True)) / TIMED
        last = passes[config.epochs - 1].cost
        mean = Passes(
            sum(each.forward for each in passes) / len(passes), sum(each.backward for each in passes) / len(passes)
        )
        images = config.epochs * len(session.loader) * len(batch.x)  # of each process
        trained = sum(p.numel() * p.element_size() for p in session.method.parameters())
        found = Forecast(
            passes=mean,
            training=images * seconds / len(timed.x) * mean.cost / last,
            measuring=_measuring(session, batch),
            flops=images * session.accelerator.num_processes * flops / len(some.x) * mean.cost / last,
            memory=3 * trained + held / len(some.x) * len(batch.x),  # weights, gradients and the optimizer's averages
            disk=room_for(session),
        )
        accelerator.wait_for_everyone()  # the main process removes the folder
        return found


def _first(batch: Batch, images: int) -> Batch:
    return batch._replace(**{name: each[:images] for name, each in batch._asdict().items() if each is not None})


def _step(loop: Loop, few: Batch) -> tuple[float, float]:
    """Operations of a step of the last epoch on `few` images, and the most bytes held for its backward passes."""
    own = {p.untyped_storage().data_ptr() for p in loop.method.parameters()}
    with Operations() as operations, _watched(own) as held:
        loop.try_steps(loop.config.epochs - 1, [few], begun=True)
    return float(operations.total), float(held["most"])


class Operations(TorchDispatchMode):
    """Counts operations inside, by torch's formulas: convolutions, matrix products, attention.

    torch's own FlopCounterMode also tells modules apart, by hooks that a gradient to the pixels alone does not allow.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **kwargs, out_val=found)
        return found


@contextmanager
def _watched(own: set[int]) -> Iterator[dict[str, int]]:
    """Inside, the bytes that graphs hold for their backward passes are counted, those of storages in `own` left out."""
    held = {"now": 0, "most": 0}
    known: dict[int, int] = {}  # how many saved tensors share a storage

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.place = tensor, tensor.untyped_storage().data_ptr()
            if self.place in own:
                return
            known[self.place] = known.get(self.place, 0) + 1
            if known[self.place] == 1:
                held["now"] += tensor.untyped_storage().nbytes()
                held["most"] = max(held.values())

        def __del__(self) -> None:
            if self.place in own:
                return
            known[self.place] -= 1
            if not known[self.place]:
                held["now"] -= self.tensor.untyped_storage().nbytes()

    with saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        yield held


def _batch(session: Session) -> Batch:
    x, *rest = next(iter(session.loader))
    return Batch(x.contiguous(memory_format=torch.channels_last), *rest)


def _passes(loop: Loop, batch: Batch) -> list[Passes]:
    """Of each epoch, an image: counted once for every number of attack steps and state of the weight perturbation."""
    config = loop.config
    few = _first(batch, COUNTED)
    known: dict[tuple[int, bool], Passes] = {}
    found = []
    for epoch in range(config.epochs):
        kind = config.attack.at_epoch(epoch).steps, epoch >= config.awp.start_epoch
        if kind not in known:
            if loop.accelerator.is_main_process:
                for companion in loop.companions:
                    if isinstance(companion, WarmStart):
                        companion.skip_to(epoch)
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
    return steps * step / session.accelerator.num_processes


def _timed(session: Session, work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    if session.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - started
