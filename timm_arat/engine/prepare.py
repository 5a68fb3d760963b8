"""Build everything a run needs from its configuration, in the order in which it can fail."""

import inspect
import os
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    parse_flag_from_env,
    set_seed,
)
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data import Data, load, subset, tensors
from ..methods import Method, build
from ..models import WeightsNotFoundError
from ..precision import keep_depthwise_in_float32, resolve_precision
from .average import Average
from .batches import SeededBatches, stack
from .config import TrainConfig
from .guard import Guard
from .warm import Perturbations, check_warm_start


@dataclass
class Session:
    """The parts of a run."""

    accelerator: Accelerator
    data: Data
    images: SeededBatches  # what `loader` draws from
    loader: DataLoader[Any]
    method: Method  # as built; `wrapped` is the same for autocast and processes
    wrapped: nn.Module
    optimizer: Any
    schedule: Scheduler
    average: Average | None
    guard: Guard | None
    balance: tuple[Tensor, Tensor] | None  # images for the clean training accuracy
    validation: tuple[Tensor, Tensor] | None
    warm: Perturbations | None  # where the attacks start


def prepare(config: TrainConfig, folder: Path) -> Session:
    """Everything for `config`, prepared by accelerate; `folder` is the run's.

    Raises:
        ValueError: something in the configuration cannot be used.
    """
    check_warm_start(config)
    accelerator = start(config, folder)
    # Another seed a process for the attacks' random starts; the model's initial weights are the main process's.
    set_seed(config.seed, device_specific=True)
    model, data = build_model(config)
    method = build(model, config.method)
    if config.model.freeze_norms != "none":
        frozen = config.model.freeze_norms
        method.freeze_norms(("main", "aux") if frozen == "both" else (frozen,))
    if accelerator.device.type == "cpu" and accelerator.mixed_precision != "no":
        keep_depthwise_in_float32(method)
    method = method.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    assert data.train is not None
    images = SeededBatches(data.train, config.seed, grids=config.warm_start)
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=config.data.batch_size,
        shuffle=True,
        drop_last=True,  # norms want full batches
        # Its own generator: a loader draws a seed for its workers, which must not move the attacks' generator.
        generator=torch.Generator().manual_seed(config.seed),
        num_workers=config.data.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    if len(loader) // accelerator.num_processes == 0:
        raise ValueError(
            f"{len(images)} training images are less than one batch of {config.data.batch_size} for each of "
            f"{accelerator.num_processes} processes: lower data.batch_size"
        )
    optimizer = build_optimizer(config, method)
    average = Average(method, config.average) if config.average.kind != "none" else None
    wrapped, optimizer, loader = accelerator.prepare(method, optimizer, loader)
    updates = -(-len(loader) // config.optimizer.accumulate)
    schedule = build_schedule(config, optimizer, updates)
    accelerator.register_for_checkpointing(schedule)
    if average is not None:
        accelerator.register_for_checkpointing(average.to(accelerator.device))
    guard = Guard(config, accelerator, method, optimizer, data) if config.guard.every else None
    if guard is not None:
        accelerator.register_for_checkpointing(guard)
    return Session(
        accelerator, data, images, loader, method, wrapped, optimizer, schedule, average, guard,
        balance=_balance(config, data) if method.needs_clean_accuracy else None,
        validation=_validation(config, data),
        warm=Perturbations(accelerator, folder, data.train) if config.warm_start else None,
    )  # fmt: skip


def start(config: TrainConfig, folder: Path) -> Accelerator:
    """The accelerator, with the CPU threads of this process set where there is no other device."""
    # torch 2.15 has another name for it, which torch 2.6 does not know.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    accelerator = Accelerator(
        mixed_precision=resolve_precision(config.mixed_precision, _device()),
        gradient_accumulation_steps=config.optimizer.accumulate,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers")),
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=config.seed, even_batches=False, non_blocking=True
        ),
        # The method runs one forward a step, and its norms' statistics are averaged once an epoch.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        step_scheduler_with_optimizer=False,
    )
    # accelerate leaves out a tracker whose package is missing, without a word.
    working = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing := set(config.trackers) - working:
        raise ValueError(f"trackers: {', '.join(sorted(missing))} is not installed: pip install it, or leave it out")
    if accelerator.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        threads = config.threads or max(1, len(os.sched_getaffinity(0)) // local)
        torch.set_num_threads(threads)  # the launcher sets OMP_NUM_THREADS=1
    return accelerator


def _device() -> torch.device:
    """What the accelerator will run on: it takes the precision when it is made, and only then says where it is."""
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def build_model(config: TrainConfig) -> tuple[nn.Module, Data]:
    """The backbone for the data set, and the data set in its size."""
    settings = config.model
    if not timm.is_model(settings.name.split(".")[0]) and ":" not in settings.name:
        near = get_close_matches(settings.name, timm.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"model.name: timm knows no model {settings.name!r}; near it are {', '.join(near) or 'none'}")
    input_size = _input_size(config)
    data = load(config.data, input_size=input_size)
    kwargs = {"num_classes": data.num_classes, "in_chans": config.data.in_chans, **settings.kwargs}
    target: dict[str, Any] = {"input_size": input_size, "num_classes": data.num_classes}
    if settings.pretrained:
        overlay = _source_overlay(settings.name, input_size)
    else:
        # Nothing was trained on another range of pixels: take them as they are.
        overlay = target | {"mean": (0.0,) * config.data.in_chans, "std": (1.0,) * config.data.in_chans}
    try:
        model: Any = timm.create_model(
            settings.name, pretrained=settings.pretrained, pretrained_cfg_overlay=overlay, **kwargs
        )
    except TypeError as error:
        raise ValueError(f"model.kwargs: {settings.name} does not take them: {error}") from error
    except WeightsNotFoundError as error:
        raise ValueError(f"model.pretrained: {error}") from error
    model.pretrained_cfg.update(target)
    if settings.sync_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before the method splits the norms
    if settings.checkpointing:
        model.set_grad_checkpointing(True)
    return model, data


def _source_overlay(name: str, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Resize a pretrained model; its channels and classes stay the source's, by which timm adapts stem and head."""
    cfg = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {} if cfg is None else {"input_size": (cfg.input_size[0], *input_size[1:])}


def _input_size(config: TrainConfig) -> tuple[int, int, int]:
    """C, H, W of the images: the data's own setting, the model's argument, or the model's default."""
    size = config.data.image_size or config.model.kwargs.get("img_size")
    if size is None:
        name = config.model.name
        cfg = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
        if cfg is None:
            raise ValueError(f"the input size of {name} is not known before it is loaded: give data.image_size")
        size = cfg.input_size[-1]
    return config.data.in_chans, int(size), int(size)


def build_optimizer(config: TrainConfig, method: Method) -> torch.optim.Optimizer:
    """timm's optimizer over the whole method: backbone, both branches, predictors."""
    settings = config.optimizer
    if settings.name not in list_optimizers():
        near = get_close_matches(settings.name, list_optimizers(), n=3, cutoff=0.4)
        raise ValueError(
            f"optimizer.name: timm knows no {settings.name!r}; near it are {', '.join(map(str, near)) or 'none'}"
        )
    kwargs = dict(settings.kwargs)
    fuses = "fused" in inspect.signature(get_optimizer_class(settings.name, bind_defaults=False)).parameters
    if fuses and method.pixels.mean.device.type in ("cpu", "cuda"):
        kwargs.setdefault("fused", True)  # one pass over each weight instead of one an operation: docs/speed.md
    return create_optimizer_v2(
        method,
        opt=settings.name,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        filter_bias_and_bn=not settings.decay_all,
        **kwargs,
    )


def build_schedule(config: TrainConfig, optimizer: Any, updates: int) -> Scheduler:
    """timm's schedule; `updates` optimizer steps an epoch. It is stepped by hand: accelerate does not wrap it."""
    settings = config.optimizer
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=settings.schedule,
            num_epochs=config.epochs,
            decay_milestones=list(settings.milestones),
            decay_rate=settings.decay_rate,
            warmup_epochs=settings.warmup_epochs,
            warmup_lr=settings.warmup_lr,
            warmup_prefix=False,
            min_lr=settings.min_lr,
            step_on_epochs=not settings.by_step,
            updates_per_epoch=updates,
        )
    except ValueError as error:
        raise ValueError(f"optimizer.schedule: {error} timm has cosine, tanh, step, multistep, poly") from error
    if schedule is None:
        raise ValueError(
            f"optimizer.schedule={settings.schedule!r} is none that timm knows: cosine, tanh, step, multistep"
        )
    return schedule


def _balance(config: TrainConfig, data: Data) -> tuple[Tensor, Tensor]:
    """The 1,024 training images (the official code's number) on which auto-balance measures clean accuracy."""
    assert data.train is not None
    indices = subset(data.train.labels, min(1024, len(data.train.labels)), config.seed)
    if config.balance_images == "plain":
        return tensors(data.train, indices)
    return stack(SeededBatches(data.train, config.seed).__getitems__(indices.tolist()))


def _validation(config: TrainConfig, data: Data) -> tuple[Tensor, Tensor] | None:
    if data.val is None:
        return None
    x, y = tensors(data.val)
    wanted = config.evaluation.val_images
    if wanted is None or wanted >= len(y):
        return x, y
    chosen = subset(y, wanted, config.seed)
    return x[chosen], y[chosen]
