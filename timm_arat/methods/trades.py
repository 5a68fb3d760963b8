"""TRADES: clean accuracy traded for robustness (Zhang et al., arXiv:1901.08573, ICML 2019)."""

import torch.nn.functional as F
from torch import Tensor

from ..losses import prediction_divergence
from ._base import Terms, accuracy, precise
from ._divergence import DivergenceAttack
from .configs import TRADESConfig


class TRADES(DivergenceAttack):
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

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        logits_clean, logits_adv = precise(self.network(x)), precise(self.network(x_adv))  # NxK each
        losses = {
            "ce_clean": F.cross_entropy(logits_clean, y),
            "kl": prediction_divergence(logits_clean, logits_adv),
        }
        accuracies = {"acc_adv": accuracy(logits_adv, y), "acc_clean": accuracy(logits_clean, y)}
        return Terms(losses, {"ce_clean": 1.0, "kl": self.config.beta}, logits_adv, accuracies)
