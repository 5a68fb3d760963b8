"""Section limit: the convolutions of our step executed back to back with nothing between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..attacks import PGD
from ._shapes import Shape
from ._sides import Step, make_step
from ._step import STEPS
from ._timing import in_turn, medians, ratio, summary


@dataclass(frozen=True)
class _Conv:
    """One convolution of a network and tensors of its shapes, channels last."""

    x: Tensor
    weight: Tensor
    settings: tuple[Any, ...]  # stride, padding, dilation, transposed, output padding, groups

    def forward(self) -> Tensor:
        return torch.ops.aten.convolution(self.x, self.weight, None, *self.settings)

    def backward(self, grad: Tensor, to_input: bool, to_weight: bool) -> None:
        mask = [to_input, to_weight, False]
        torch.ops.aten.convolution_backward(grad, self.x, self.weight, None, *self.settings, mask)


def measure(shapes: Mapping[str, Shape], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """`ratios`: how many times longer our ARAT step takes than its convolutions alone."""
    ratios, details = {}, {}
    for key, shape in shapes.items():
        sides = {"ours": make_step("ours", "arat", shape, PGD(steps=STEPS)), "convolutions": _convolutions(shape)}
        seconds = in_turn(sides, rounds)
        ratios[key] = ratio(seconds, "ours", "convolutions")
        details[key] = {"seconds": medians(seconds)}
        say(f"limit {key}: our step is {ratios[key]['median']:.2f}x its convolutions")
    return summary(ratios) | {"shapes": details}


def _convolutions(shape: Shape) -> Step:
    """Of a step: each of the attack's passes, forward and to the input; the joint pass of twice the batch, and to
    the weights too. The first layer needs no gradient to the images in the joint pass."""
    x, _ = shape.images()
    attack, joint = _record(shape, x), _record(shape, torch.cat([x, x]))
    attack_grads, joint_grads = ([torch.randn_like(conv.forward()) for conv in each] for each in (attack, joint))

    def run() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                for conv in attack:
                    conv.forward()
                for conv, grad in zip(attack, attack_grads, strict=True):
                    conv.backward(grad, to_input=True, to_weight=False)
            for conv in joint:
                conv.forward()
            for number, (conv, grad) in enumerate(zip(joint, joint_grads, strict=True)):
                conv.backward(grad, to_input=number > 0, to_weight=True)

    return run


class _Recorder(TorchDispatchMode):
    """Takes down every convolution that runs inside, whatever module asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Conv] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, _, *settings = args
            x, weight = (t.detach().contiguous(memory_format=torch.channels_last) for t in (x, weight))
            self.found.append(_Conv(x, weight, tuple(settings)))
        return func(*args, **(kwargs or {}))


def _record(shape: Shape, x: Tensor) -> list[_Conv]:
    """The convolutions of one pass, in their order."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = shape.build().to(device).eval()
    with torch.no_grad(), _Recorder() as recorder:
        model(x.to(device))
    return recorder.found
