"""What every training method shares: one `nn.Module`, one forward a step."""

from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..norm import batch_norms, split_norms
from ..pixels import in_pixels

Self = TypeVar("Self", bound="Method")


class Method(nn.Module):
    """Base of the training methods; `method(x, y)` is a whole step's forward, attack included.

    The engine wraps the method, not the backbone, so that distributed training sees one forward per backward whatever
    the method does inside. Gradient-free work (the attack) runs on the unwrapped backbone.

    Attributes:
        pixels: The backbone behind its normalisation; takes NCHW in [0, 1].
        config: The method's settings, one of `configs`.
        attack: That of this epoch, for methods whose settings have one.
        frozen_norms: Norms that training leaves as they are; see `freeze_norms`.
        needs_clean_accuracy: The engine measures clean training accuracy before each epoch for `begin_epoch`.
    """

    needs_clean_accuracy = False
    config: Any
    attack: Any

    def __init__(self, model: nn.Module, config: Any) -> None:
        super().__init__()
        self.pixels = in_pixels(model)
        self.config = config
        self.frozen_norms: list[nn.Module] = []
        if hasattr(config, "attack"):
            self.attack = config.attack

    def freeze_norms(self, branches: Collection[str]) -> None:
        """Keep the BatchNorms of `branches` (of 'main' and 'aux') as they are from here on, for fine-tuning.

        Their affine parameters get no gradient and they normalise by their running statistics, which no longer move.

        Raises:
            ValueError: the backbone has no BatchNorm of a branch.
        """
        norms: dict[str, list[nn.Module]] = {
            "main": [norm for _, norm in batch_norms(self.model)],
            "aux": [norm.aux_bn[0] for _, norm in split_norms(self.model)],
        }
        for branch in branches:
            if not norms[branch]:
                raise ValueError(f"{type(self.model).__name__} has no BatchNorm in its {branch} branch to freeze")
            self.frozen_norms += norms[branch]
        for norm in self.frozen_norms:
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self: Self, mode: bool = True) -> Self:
        """As torch's; frozen norms stay in evaluation mode."""
        super().train(mode)
        for norm in self.frozen_norms:
            norm.training = False  # itself alone: its activation and dropout are not frozen
        return self

    @property
    def model(self) -> nn.Module:
        """The backbone as timm built it (with split norms, where the method splits them)."""
        return self.pixels.model

    def begin_epoch(self, epoch: int, clean_accuracy: float | None = None) -> None:
        """Set what stays constant during epoch `epoch` (from 0); `clean_accuracy` is in [0, 1]."""
        if hasattr(self.config, "attack"):
            self.attack = self.config.attack.at_epoch(epoch)

    def clean_logits(self, x: Tensor) -> Tensor:
        """Logits NxK of clean images in [0, 1], by the branch that serves them in training."""
        return self.pixels(x)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Images NxCxHxW in [0, 1] and classes N to {'loss': scalar, 'output': logits NxK, name: term for the log}.

        A method that attacks does so by `self.attack.perturb(self.pixels, x, y)`, which the engine may have replaced.
        """
        raise NotImplementedError


def precise(t: Tensor) -> Tensor:
    """`t` in float32 where autocast made it half precision: losses and cosines need it."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of right predictions, a scalar in [0, 1]."""
    return (logits.detach().argmax(-1) == y).float().mean()
