"""Plain training, the twin that shows what robustness costs and what a network without it is worth."""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ._base import Method, accuracy, precise
from .configs import StandardConfig


class Standard(Method):
    """Cross-entropy on clean images."""

    config: StandardConfig

    def __init__(self, model: nn.Module, config: StandardConfig | None = None, **settings: Any) -> None:
        super().__init__(model, replace(config or StandardConfig(), **settings))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        logits = precise(self.pixels(x))
        loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
        return {"loss": loss, "output": logits, "acc_clean": accuracy(logits, y)}
