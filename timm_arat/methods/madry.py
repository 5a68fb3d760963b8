"""PGD adversarial training (Madry et al., arXiv:1706.06083)."""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ._base import Method, accuracy, precise
from .configs import MadryConfig


class Madry(Method):
    """Cross-entropy on adversarial images: min E max CE(f(x'), y) (arXiv:1706.06083, Eq. 2.1).

    The attack sees running statistics (`norm_mode='eval'`) unless it is told otherwise; the authors attack in train
    mode and report little difference (MadryLab/cifar10_challenge issue 22).
    """

    config: MadryConfig

    def __init__(self, model: nn.Module, config: MadryConfig | None = None, **settings: Any) -> None:
        super().__init__(model, replace(config or MadryConfig(), **settings))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = self.attack.perturb(self.pixels, x, y)
        logits = precise(self.pixels(found.x_adv))
        loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
        return {
            "loss": loss,
            "output": logits,
            "acc_adv": accuracy(logits, y),
            "zero_grad": found.zero_grad.float().mean(),
        }
