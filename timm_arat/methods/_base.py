"""What every training method shares: one `nn.Module`, one forward a step."""

import torch
from torch import Tensor, nn

from ..pixels import in_pixels


class Method(nn.Module):
    """Base of the training methods; `method(x, y)` is a whole step's forward, attack included.

    The engine wraps the method, not the backbone, so that distributed training sees one forward per backward whatever
    the method does inside. Gradient-free work (the attack) runs on the unwrapped backbone.

    Attributes:
        pixels: The backbone behind its normalisation; takes NCHW in [0, 1].
        needs_clean_accuracy: The engine measures clean training accuracy before each epoch for `begin_epoch`.
    """

    needs_clean_accuracy = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.pixels = in_pixels(model)

    @property
    def model(self) -> nn.Module:
        """The backbone as timm built it (with split norms, where the method splits them)."""
        return self.pixels.model

    def begin_epoch(self, epoch: int, clean_accuracy: float | None = None) -> None:
        """Set what stays constant during epoch `epoch` (from 0); `clean_accuracy` is in [0, 1]."""

    def clean_logits(self, x: Tensor) -> Tensor:
        """Logits NxK of clean images in [0, 1], by the branch that serves them in training."""
        return self.pixels(x)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Images NxCxHxW in [0, 1] and classes N to {'loss': scalar, 'output': logits NxK, name: term for the log}."""
        raise NotImplementedError


def precise(t: Tensor) -> Tensor:
    """`t` in float32 where autocast made it half precision: losses and cosines need it."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of right predictions, a scalar in [0, 1]."""
    return (logits.detach().argmax(-1) == y).float().mean()
