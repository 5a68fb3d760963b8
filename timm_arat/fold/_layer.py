"""Put one norm into the layer before it, or cast that layer, and put both back."""

from collections.abc import Callable

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def fold(layer: nn.Module, norm: _BatchNorm | None, dtype: torch.dtype) -> Callable[[], None]:
    """Put the scale and shift of `norm` into `layer`, both in `dtype`; what is returned puts all back."""
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    scaled, shift = (weight, bias) if norm is None else _scaled(weight, bias, norm)
    # channels_last is the faster layout, also where the images come in the other: see docs/speed.md
    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    layer._parameters["weight"] = scaled.to(dtype, memory_format=layout)  # type: ignore[assignment]
    layer._parameters["bias"] = shift if shift is None else shift.to(dtype)  # type: ignore[assignment]
    if norm is not None:
        norm.forward = _rest(norm)  # type: ignore[method-assign, assignment]

    def put_back() -> None:
        layer._parameters["weight"], layer._parameters["bias"] = weight, bias
        if norm is not None:
            del norm.forward

    return put_back


def _scaled(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer behind which `norm` is no longer needed."""
    assert norm.running_mean is not None and norm.running_var is not None
    # In float64, which Apple's MPS lacks: a variance near zero makes a scale that float32 rounds badly.
    wide = torch.float32 if norm.running_var.device.type == "mps" else torch.float64
    scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)), shift


def _rest(norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    """What a norm does after it has normalised."""
    if isinstance(norm, BatchNormAct2d):
        return lambda x: norm.act(norm.drop(x))
    return lambda x: x
