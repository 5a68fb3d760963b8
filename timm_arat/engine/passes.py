"""Forward and backward passes through the networks of a method, counted, not declared."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..methods import Frozen, Method
from ..pixels import InPixels
from .costs import Passes


@contextmanager
def counted(method: Method) -> Iterator[Passes]:
    """Inside, passes through the method's backbone and its other networks (a teacher) are counted, images together.

    A pass is known by the first layer that holds weights, which every way through a network begins with, and which a
    gradient reaches last. So a pass that only gives features counts, too. The hooks keep attacks from folding
    BatchNorms, which changes their time but not their number of passes: count and measure time apart.
    """
    found = Passes()

    def on_forward(module: nn.Module, args: Any, output: Tensor) -> None:
        found.forward += len(output)
        if output.requires_grad:
            output.register_hook(on_backward)

    def on_backward(grad: Tensor) -> None:
        found.backward += len(grad)

    handles = [stem(network.model).register_forward_hook(on_forward) for network in _networks(method)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def stem(model: nn.Module) -> nn.Module:
    """The first layer of `model` that holds weights and no further layers."""
    return next(each for each in model.modules() if not any(each.children()) and any(True for _ in each.parameters()))


def _networks(method: Method) -> list[InPixels]:
    """Those of the method, trained and only used, each once."""
    roots = [method, *(each.module for each in vars(method).values() if isinstance(each, Frozen))]
    found = {id(each): each for root in roots for each in root.modules() if isinstance(each, InPixels)}
    return list(found.values())
