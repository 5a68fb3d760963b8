"""Plain training, the twin that shows what robustness costs and what a network without it is worth."""

import torch.nn.functional as F
from torch import Tensor

from ..attacks import PGD
from ._base import Method, Terms, accuracy, precise
from .configs import StandardConfig


class Standard(Method):
    """Cross-entropy on clean images."""

    Config = StandardConfig
    attacks = False
    config: StandardConfig

    def perturb(
        self, x: Tensor, y: Tensor, start: Tensor | None = None, attack: PGD | None = None
    ) -> tuple[Tensor, Tensor]:
        """The images as they are, twice."""
        return x, x

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        logits = precise(self.network(x))
        ce_clean = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
        return Terms({"ce_clean": ce_clean}, {"ce_clean": 1.0}, logits, {"acc_clean": accuracy(logits, y)})
