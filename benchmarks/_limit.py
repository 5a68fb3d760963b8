"""Section limit: the convolutions of our step executed back to back with nothing between them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_arat.attacks import PGD

from ._machine import device
from ._shapes import Shape
from ._sides import Side, Step, as_trained, make_step
from ._step import STEPS
from ._timing import in_turn, medians, ratio, summary

NEXT = 4  # operators of a profile beside the convolutions


@dataclass(frozen=True)
class Conv:
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
    """`ratios`: how many times longer our ARAT step takes than its convolutions alone; `float32`: likewise there."""
    ratios: dict[Side, dict[str, dict[str, float]]] = {"ours": {}, "ours_float32": {}}
    details = {}
    for key, shape in shapes.items():
        steps: dict[str, Step] = {side: make_step(side, "arat", shape, PGD(steps=STEPS)) for side in ratios}
        alone: dict[str, Step] = {f"convolutions of {side}": _convolutions(side, shape) for side in ratios}
        seconds = in_turn(steps | alone, rounds)
        for side, each in ratios.items():
            each[key] = ratio(seconds, side, f"convolutions of {side}")
        details[key] = {"seconds": medians(seconds), "profile": _profile(steps["ours"])}
        middle = {side: each[key]["median"] for side, each in ratios.items()}
        say(f"limit {key}: {middle['ours']:.2f}x, in float32 {middle['ours_float32']:.2f}x")
    return summary(ratios["ours"]) | {"float32": summary(ratios["ours_float32"]), "shapes": details}


def _profile(step: Step) -> dict[str, float]:
    """Shares of a step's time by operator: all `convolutions`, and the `NEXT` largest others."""
    with torch.profiler.profile() as profiler:
        step()
    on = "self_device_time_total" if device().type == "cuda" else "self_cpu_time_total"
    times = Counter({event.key: getattr(event, on) for event in profiler.key_averages()})
    convolutions = [name for name in times if name.startswith("aten::") and "convolution" in name]
    total, alone = times.total(), sum(times.pop(name) for name in convolutions)
    others = {name.removeprefix("aten::"): time for name, time in times.most_common(NEXT)}
    return {name: round(time / total, 4) for name, time in {"convolutions": alone, **others}.items()}


def _convolutions(side: Side, shape: Shape) -> Step:
    """Of a step: each of the attack's passes, forward and to the input; the clean and the adversarial pass."""
    x, _ = shape.images()
    model = shape.build().to(device()).eval()
    model, x, precision = as_trained(model, x.to(device()), "no" if side == "ours_float32" else "auto")
    with precision:
        convolutions = Convolutions(model, x)

    def run() -> None:
        for number in range(STEPS + 2):
            convolutions.forward()
            convolutions.backward(to_weights=number >= STEPS)

    return run


class Convolutions:
    """Those of one pass of `model` over `x`, in their order and precision, to be executed back to back."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        with torch.no_grad(), _Recorder() as recorder:
            model(x)
        self._convs = recorder.found
        self._grads = [torch.randn_like(conv.forward()) for conv in self._convs]

    @torch.no_grad()
    def forward(self) -> None:
        for conv in self._convs:
            conv.forward()

    @torch.no_grad()
    def backward(self, to_weights: bool) -> None:
        """To the images, or as in training to the weights, where the images need no gradient."""
        for place, (conv, grad) in enumerate(zip(self._convs, self._grads, strict=True)):
            conv.backward(grad, to_input=place > 0 or not to_weights, to_weight=to_weights)


class _Recorder(TorchDispatchMode):
    """Takes down every convolution that runs inside, whatever module asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Conv] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, _, *settings = args
            x, weight = (t.detach().contiguous(memory_format=torch.channels_last) for t in (x, weight))
            self.found.append(Conv(x, weight, tuple(settings)))
        return func(*args, **(kwargs or {}))
