"""Optimizer and learning-rate schedule, timm's by their names."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from ..methods import Method
from ..names import nearest
from .config import TrainConfig


def build_optimizer(config: TrainConfig, method: Method) -> torch.optim.Optimizer:
    """timm's optimizer over the whole method: backbone, both branches, predictors."""
    settings = config.optimizer
    if settings.name not in list_optimizers():
        raise ValueError(
            f"optimizer.name: timm knows no {settings.name!r}; {nearest(settings.name, map(str, list_optimizers()), 3)}"
        )
    kwargs = dict(settings.kwargs)
    fuses = "fused" in inspect.signature(get_optimizer_class(settings.name, bind_defaults=False)).parameters
    if fuses and method.network.mean.device.type in ("cpu", "cuda"):
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
