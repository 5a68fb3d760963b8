"""TRADES: clean accuracy traded for robustness (Zhang et al., arXiv:1901.08573, ICML 2019)."""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import prediction_divergence
from ._base import Method, accuracy, precise
from .configs import TRADESConfig


class TRADES(Method):
    """CE(f(x), y) + beta KL(p(x) || p(x')), where the attack seeks the x' whose p(x') is furthest from p(x) (Alg. 1).

    As in the authors' code (yaodongyu/TRADES 6e8e11b): means over the batch, gradients through both p(x) and p(x'), an
    attack in eval mode, and clean and adversarial images as two batches, each with its own statistics. Deviations:
    the attack starts from a uniform point of the ball, not from x + 0.001 N(0, 1); and both terms share one pass of the
    clean images, which so move the running statistics once, before the adversarial ones, not also after them.
    """

    config: TRADESConfig

    def __init__(self, model: nn.Module, config: TRADESConfig | None = None, **settings: Any) -> None:
        super().__init__(model, replace(config or TRADESConfig(), **settings))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = self.attack.perturb(self.pixels, x, y)
        logits_clean, logits_adv = precise(self.pixels(x)), precise(self.pixels(found.x_adv))  # NxK each
        ce_clean = F.cross_entropy(logits_clean, y)
        kl = prediction_divergence(logits_clean, logits_adv)
        return {
            "loss": ce_clean + self.config.beta * kl,
            "output": logits_adv,
            "ce_clean": ce_clean.detach(),
            "kl": kl.detach(),
            "acc_adv": accuracy(logits_adv, y),
            "acc_clean": accuracy(logits_clean, y),
            "zero_grad": found.zero_grad.float().mean(),
        }
