"""Optimizer and learning-rate schedule, timm's by their names."""

import inspect
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

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
    if settings.name == "adahessian":
        raise ValueError("optimizer.name=adahessian needs second derivatives, which a training step does not keep")
    kwargs = dict(settings.kwargs)
    fuses = "fused" in inspect.signature(get_optimizer_class(settings.name, bind_defaults=False)).parameters
    if fuses and method.network.mean.device.type in ("cpu", "cuda"):
        kwargs.setdefault("fused", True)  # one pass over each weight instead of one an operation: docs/speed.md
    try:
        return create_optimizer_v2(
            _Grouped(method, exceptions=not settings.decay_all),
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            filter_bias_and_bn=not settings.decay_all,
            **kwargs,
        )
    except (TypeError, AssertionError) as error:  # the latter of optimizers that need a GPU
        raise ValueError(f"optimizer.kwargs {settings.kwargs} do not fit {settings.name} here: {error}") from error


class _Grouped(nn.Module):
    """`method` as timm wants a model to group its parameters: by the layers and exceptions of the backbone.

    What the method adds, such as predictors, counts as the last layer. Auxiliary norms lie beside their main ones.

    Args:
        exceptions: Leave undecayed what the backbone names as such.
    """

    def __init__(self, method: Method, exceptions: bool) -> None:
        super().__init__()
        self.method, self.exceptions = method, exceptions
        self.prefix = next(name for name, module in self.named_modules() if module is method.model) + "."

    def no_weight_decay(self) -> set[str]:
        """Full names, or patterns of them."""
        backbone: Any = self.method.model
        names = backbone.no_weight_decay() if self.exceptions and hasattr(backbone, "no_weight_decay") else ()
        return {self.prefix + name for name in names}

    def group_matcher(self, coarse: bool = False) -> Any:
        """A function from a parameter's name to the number of its layer."""
        backbone: Any = self.method.model
        if not hasattr(backbone, "group_matcher"):
            raise ValueError(f"optimizer.kwargs.layer_decay: {type(backbone).__name__} does not tell its layers")
        layers = group_parameters(backbone, backbone.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values())
        return lambda name: layers.get(name.removeprefix(self.prefix), last)


def build_schedule(config: TrainConfig, optimizer: Any, updates: int) -> Scheduler:
    """timm's schedule; `updates` optimizer steps an epoch. It is stepped by hand: accelerate does not wrap it."""
    settings = config.optimizer
    known = "constant, cosine, tanh, poly, step, multistep, wsd, rsqrt, plateau"
    name, options = settings.schedule, dict[str, Any](decay_rate=settings.decay_rate)
    if settings.decay_epochs is not None:
        options["decay_epochs"] = settings.decay_epochs
    if name in ("constant", "none"):  # with a warm-up and layer-wise rates, which timm's none has not
        name, options = "step", {"decay_epochs": 1, "decay_rate": 1.0}
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            # timm adds a warm-up that is a prefix to these; here `epochs` are all there are.
            num_epochs=config.epochs - settings.warmup_epochs * settings.warmup_prefix,
            decay_milestones=list(settings.milestones),
            patience_epochs=settings.patience_epochs,
            warmup_epochs=settings.warmup_epochs,
            warmup_lr=settings.warmup_lr,
            warmup_prefix=settings.warmup_prefix,
            min_lr=settings.min_lr,
            step_on_epochs=not settings.by_step or name == "plateau",
            updates_per_epoch=updates,
            **options,
        )
    except ValueError as error:
        raise ValueError(f"optimizer.schedule: {error} Known: {known}") from error
    if schedule is None:
        raise ValueError(f"optimizer.schedule={settings.schedule!r} is none of {known}")
    return schedule
