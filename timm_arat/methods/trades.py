"""TRADES: clean accuracy traded for robustness (Zhang et al., arXiv:1901.08573, ICML 2019)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import Objective, divergence
from ..losses import prediction_divergence
from ._base import Method, Terms, accuracy, precise
from .configs import TRADESConfig


class TRADES(Method):
    """CE(f(x), y) + beta KL(p(x) || p(x')), where the attack seeks the x' whose p(x') is furthest from p(x) (Alg. 1).

    As in the authors' code (yaodongyu/TRADES 6e8e11b): means over the batch, gradients through both p(x) and p(x'), an
    attack in eval mode, and clean and adversarial images as two batches, each with its own statistics. Deviations:
    the attack starts from a uniform point of the ball, not from x + 0.001 N(0, 1); and both terms share one pass of the
    clean images, which so move the running statistics once, before the adversarial ones, not also after them.

    Raises:
        ValueError: the attack starts at the images, where the divergence that it climbs has no gradient.
    """

    Config = TRADESConfig
    config: TRADESConfig

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        if not self.attack.random_start:
            raise ValueError("TRADES needs attack.random_start: at the images themselves its objective has no gradient")

    def objective(self, x: Tensor, y: Tensor) -> Objective:
        """The divergence from the clean prediction, which is made once, while the network is ready for the attack."""
        with torch.no_grad():
            return divergence(self.network(x))

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        logits_clean, logits_adv = precise(self.network(x)), precise(self.network(x_adv))  # NxK each
        losses = {
            "ce_clean": F.cross_entropy(logits_clean, y),
            "kl": prediction_divergence(logits_clean, logits_adv),
        }
        accuracies = {"acc_adv": accuracy(logits_adv, y), "acc_clean": accuracy(logits_clean, y)}
        return Terms(losses, {"ce_clean": 1.0, "kl": self.config.beta}, logits_adv, accuracies)
