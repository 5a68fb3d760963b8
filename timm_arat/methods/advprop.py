"""AdvProp: adversarial images help clean accuracy, by norms of their own (Xie et al., arXiv:1911.09665, CVPR 2020)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import PGD
from ..norm import norm_branch
from ._base import Method, Terms, accuracy, precise
from ._split import split
from .configs import AdvPropConfig


class AdvProp(Method):
    """(CE(f(x), y) + CE(f_aux(x'), y)) / 2: clean images use the main norms, adversarial ones the auxiliary (Alg. 1).

    The attack is on f_aux. The main branch, which clean images train, is what is deployed and exported: the mirror
    image of ARAT's use of the two sets, made for clean accuracy and not for robustness. Deviations: the paper adds the
    two losses, and we take the mean, as timm's training script does; the attack of the paper is PGD of 5 steps of 1/255
    with eps 4/255, which a recipe sets in `attack`.

    Raises:
        ValueError: the model has no norm of the kind to split.
    """

    deploys_attacked = False
    Config = AdvPropConfig
    config: AdvPropConfig

    def __init__(self, model: nn.Module, config: AdvPropConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, config, **kwargs)
        split(self.model, self.config.split_norm)

    def perturb(
        self, x: Tensor, y: Tensor, start: Tensor | None = None, attack: PGD | None = None
    ) -> tuple[Tensor, Tensor]:
        """As the base's, seen by the auxiliary branch."""
        with norm_branch(self.model, "aux"):
            return super().perturb(x, y, start, attack)

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        logits = precise(self.network(x))
        with norm_branch(self.model, "aux"):
            logits_adv = precise(self.network(x_adv))
        smoothing = self.config.label_smoothing
        losses = {
            "ce_clean": F.cross_entropy(logits, y, label_smoothing=smoothing),
            "ce_adv": F.cross_entropy(logits_adv, y, label_smoothing=smoothing),
        }
        log = {"acc_clean": accuracy(logits, y), "acc_adv": accuracy(logits_adv, y)}
        return Terms(losses, {"ce_clean": 0.5, "ce_adv": 0.5}, logits, log)
