"""PGD adversarial training (Madry et al., arXiv:1706.06083)."""

import torch.nn.functional as F
from torch import Tensor

from ._base import Method, Terms, accuracy, precise
from .configs import MadryConfig


class Madry(Method):
    """Cross-entropy on adversarial images: min E max CE(f(x'), y) (arXiv:1706.06083, Eq. 2.1).

    The attack sees running statistics (`norm_mode='eval'`) unless it is told otherwise; the authors attack in train
    mode and report little difference (MadryLab/cifar10_challenge issue 22).
    """

    Config = MadryConfig
    config: MadryConfig

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        logits = precise(self.network(x_adv))
        ce_adv = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
        return Terms({"ce_adv": ce_adv}, {"ce_adv": 1.0}, logits, {"acc_adv": accuracy(logits, y)})
