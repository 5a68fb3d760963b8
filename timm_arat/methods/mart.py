"""MART: misclassification-aware adversarial training (Wang et al., ICLR 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import one_hot
from ._base import Method, Terms, accuracy, precise
from .configs import MARTConfig


class MART(Method):
    """BCE(f(x'), y) + weight * mean_i KL(p(x_i) || p(x'_i)) (1 - p_y(x_i)), with p the softmax of f (paper, Eq. 11).

    BCE is cross-entropy plus the margin term -log(1 - max_{k != y} p_k(x')). As in the authors' code
    (YisenWang/MART 2d83e17): nothing is detached, so the gradient also flows through p(x) and through 1 - p_y(x); the
    attack climbs the cross-entropy in eval mode; clean images pass before the adversarial ones, each with statistics
    of their own. Deviations: the attack starts from a uniform point of the ball, not from x + 0.001 N(0, 1), and the
    logarithms are log-softmaxes, where the authors add 1e-12 to the probabilities. With mixed labels, which the authors
    have not, k runs over the classes of the smallest share.
    """

    Config = MARTConfig
    config: MARTConfig

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        logits_clean, logits_adv = precise(self.network(x)), precise(self.network(x_adv))  # NxK each
        share = one_hot(y, logits_adv)  # NxK
        wrong = share <= share.amin(-1, keepdim=True)  # of mixed labels, both classes of the mixture are right
        others = logits_adv.softmax(-1).masked_fill(~wrong, 0).amax(-1)
        divergence = F.kl_div(
            logits_adv.log_softmax(-1), logits_clean.log_softmax(-1), reduction="none", log_target=True
        )
        missed = 1 - (logits_clean.softmax(-1) * share).sum(-1)
        losses = {
            "ce_adv": F.cross_entropy(logits_adv, y),
            # 1.0001, the authors': the logarithm stays finite where the prediction is certain and wrong.
            "margin": -torch.log(1.0001 - others).mean(),
            "kl": (divergence.sum(-1) * missed).mean(),
        }
        accuracies = {"acc_adv": accuracy(logits_adv, y), "acc_clean": accuracy(logits_clean, y)}
        return Terms(losses, {"ce_adv": 1.0, "margin": 1.0, "kl": self.config.weight}, logits_adv, accuracies)
