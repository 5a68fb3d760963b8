"""Half precision where the device computes in it, and the layers that are better off without."""

import os
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn


def resolve_precision(wish: Literal["auto", "no", "bf16", "fp16"], device: torch.device) -> str:
    """What accelerate's `mixed_precision` is to be; auto is what `accelerate launch` was told, else bf16 if native."""
    if wish != "auto":
        return wish
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launcher != "no":
        return launcher
    return "bf16" if _computes_in_bf16(device) else "no"


def _computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is the device's own, not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # torch has no public question for it; by its own kernels, AVX512_BF16 or AMX.
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check() for check in checks if check is not None)
    return False


def keep_depthwise_in_float32(model: nn.Module) -> None:
    """Let the depthwise convolutions of `model` compute in float32 under autocast, in place.

    For CPUs, where oneDNN's are several times slower in bf16: an attack on an EfficientNet takes twice as long.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.__class__ = _in_float32(type(module))  # type: ignore[arg-type]


@cache
def _in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    # A class, not a wrapped method: a copy of the module, such as an average, computes with its own weights.
    # (mypy takes no class that comes as an argument, neither as a base nor as a key.)
    class Float32(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Any:
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x.to(self.weight.dtype))

    Float32.__name__ = Float32.__qualname__ = f"Float32{kind.__name__}"
    return Float32
