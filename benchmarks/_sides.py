"""Our step and the textbook's: the same weights, the same batch, each with everything up to the optimizer's step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from timm_arat.attacks import PGD
from timm_arat.methods import ARAT, TRADES, Madry, Method
from timm_arat.norm import batch_norms
from timm_arat.precision import keep_depthwise_in_float32, resolve_precision

from ._machine import device
from ._shapes import Shape
from ._textbook import TEXTBOOK

Side = Literal["ours", "ours_float32", "ours_checkpointing", "ours_compiled", "textbook", "textbook_eval"]
Step = Callable[[], None]
Net = TypeVar("Net", bound=nn.Module)


def make_step(side: Side, method_name: str, shape: Shape, attack: PGD) -> Step:
    """One training step to be called again and again.

    side: `textbook` attacks in train mode, as the published codes but TRADES'; `textbook_eval` in eval mode, as our
        default. `ours` is a recipe's default, ours_float32 with `mixed_precision: no`, ours_checkpointing with
        `model.checkpointing: true`, and ours_compiled with `compile: on`.
    """
    method = _build(method_name, shape, attack)
    x, y = shape.images()
    method, x, y = method.to(device()).train(), x.to(device()), y.to(device())
    if side == "ours_checkpointing":
        method.model.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's protocol
    if side == "ours_compiled":
        method.model.compile()
    precision: AbstractContextManager[Any] = nullcontext()
    ours = side.startswith("ours")
    if ours:
        method, x, precision = as_trained(method, x, "no" if side == "ours_float32" else "auto")
    # A learning rate at which random labels do no harm however often it steps.
    optimizer = torch.optim.SGD(method.parameters(), 1e-5, momentum=0.9, weight_decay=5e-4, fused=ours)

    def step() -> None:
        if ours:
            with precision:
                loss = method(x, y)["loss"]
        else:
            loss = TEXTBOOK[method_name](method, x, y, attack, "train" if side == "textbook" else "eval")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def as_trained(
    network: Net, x: Tensor, mixed_precision: Literal["auto", "no"]
) -> tuple[Net, Tensor, AbstractContextManager[Any]]:
    """Network and images in the layout, and the autocast, in which the engine runs them."""
    half = resolve_precision(mixed_precision, x.device) != "no"
    if half and x.device.type == "cpu":
        keep_depthwise_in_float32(network)
    network = network.to(memory_format=torch.channels_last)
    precision = torch.autocast(x.device.type, torch.bfloat16, enabled=half)
    return network, x.contiguous(memory_format=torch.channels_last), precision


def _build(name: str, shape: Shape, attack: PGD) -> Method:
    model = shape.build()
    if name == "trades":
        return TRADES(model, attack=attack)
    if name == "madry":
        return Madry(model, attack=attack)
    splits = any(True for _ in batch_norms(model))
    return ARAT(model, attack=attack, split_norm="batch" if splits else "none")
