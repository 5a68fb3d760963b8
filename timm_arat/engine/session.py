"""The parts of a run, built in the order in which they can fail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data import Data, subset, tensors
from ..methods import Method, method_class, method_name
from ..precision import keep_depthwise_in_float32
from .batches import SeededBatches
from .companions import Companion
from .config import TrainConfig
from .model import build_model, build_teacher
from .optimizer import build_optimizer, build_schedule
from .signals import ignore_signals


@dataclass
class Session:
    """What a run consists of.

    Attributes:
        folder: The run's folder.
        images: What `loader` draws from.
        method: As built; `wrapped` is the same for autocast and processes.
        validation: Held-out images NxCxHxW and their classes N, if any are held out.
        companions: In the order in which their hooks run.
        say: Prints a line of the log, on the main process only.
    """

    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    data: Data
    images: SeededBatches
    loader: DataLoader[Any]
    method: Method
    wrapped: nn.Module
    optimizer: Any
    schedule: Scheduler
    validation: tuple[Tensor, Tensor] | None
    say: Callable[[str], None]
    companions: list[Companion] = field(default_factory=list)

    @property
    def updates(self) -> int:
        """Optimizer steps an epoch."""
        return -(-len(self.loader) // self.config.optimizer.accumulate)


def prepare(
    config: TrainConfig,
    folder: Path,
    accelerator: Accelerator,
    companions: Sequence[type[Companion]],
    say: Callable[[str], None],
    data: Data | None = None,
) -> Session:
    """Everything for `config`, prepared by `accelerator`; `folder` is the run's.

    Args:
        companions: Those that may accompany the run, in the order in which their hooks run.
        say: Prints a line of the log.
        data: The data set of `config`, where it is open already.

    Raises:
        ValueError: something in the configuration cannot be used.
    """
    # Another seed a process for the attacks' random starts; the model's initial weights are the main process's.
    set_seed(config.seed, device_specific=True)
    model, data = build_model(config, data)
    method = build_method(config, model)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision != "no":
        keep_depthwise_in_float32(method)
    method = method.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    wanted = [kind for kind in companions if kind.wanted(config, method)]
    assert data.train is not None
    images = SeededBatches(data.train, config.seed, grids=any(kind.needs_places for kind in wanted))
    loader = build_loader(config, images, accelerator)
    optimizer = build_optimizer(config, method)
    wrapped, optimizer, loader = accelerator.prepare(method, optimizer, loader)
    session = Session(
        config, folder, accelerator, data, images, loader, method, wrapped, optimizer,
        schedule=build_schedule(config, optimizer, -(-len(loader) // config.optimizer.accumulate)),
        validation=_validation(config, data),
        say=say,
    )  # fmt: skip
    session.companions = [kind(session) for kind in wanted]
    return session


def build_method(config: TrainConfig, model: nn.Module) -> Method:
    """The method around the backbone `model`, with its teacher and its frozen norms."""
    kind = method_class(method_name(config.method))
    method = kind(model, config.method, attack=config.attack, teacher=build_teacher(config, model))
    if config.model.sync_norm:
        # The networks' norms are synchronised already, before the split; a predictor has one of its own.
        for name, head in list(method.named_children()):
            if name not in ("network", "teacher"):
                setattr(method, name, nn.SyncBatchNorm.convert_sync_batchnorm(head))
    if config.model.freeze_norms != "none":
        frozen = config.model.freeze_norms
        method.freeze_norms(("main", "aux") if frozen == "both" else (frozen,))
    return method


def build_loader(config: TrainConfig, images: SeededBatches, accelerator: Accelerator) -> DataLoader[Any]:
    """Batches of the training images, in an order that depends on the seed and the epoch alone."""
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=config.data.batch_size,
        shuffle=True,
        drop_last=config.data.drop_last,
        # Its own generator: a loader draws a seed for its workers, which must not move the attacks' generator.
        generator=torch.Generator().manual_seed(config.seed),
        num_workers=config.data.workers,
        worker_init_fn=ignore_signals,
        pin_memory=accelerator.device.type == "cuda",
    )
    left = 0 if config.data.drop_last else len(images) % config.data.batch_size
    if left == 1 or (left % 2 and images.mix is not None):
        raise ValueError(
            f"data.drop_last=false leaves a last batch of {left} of {len(images)} training images, and "
            f"{'mixing needs an even number' if left > 1 else 'a norm needs at least 2'}: take another data.batch_size"
        )
    if not config.data.drop_last and len(loader) % accelerator.num_processes:
        raise ValueError(
            f"data.drop_last=false leaves {len(loader)} batches, which {accelerator.num_processes} processes cannot "
            "share evenly: take another data.batch_size, or leave drop_last at true"
        )
    if len(loader) // accelerator.num_processes == 0:
        raise ValueError(
            f"{len(images)} training images are less than one batch of {config.data.batch_size} for each of "
            f"{accelerator.num_processes} processes: lower data.batch_size"
        )
    return loader


def _validation(config: TrainConfig, data: Data) -> tuple[Tensor, Tensor] | None:
    if data.val is None:
        return None
    x, y = tensors(data.val)
    wanted = config.validation.images
    if wanted is None or wanted >= len(y):
        return x, y
    chosen = subset(y, wanted, config.seed)
    return x[chosen], y[chosen]
