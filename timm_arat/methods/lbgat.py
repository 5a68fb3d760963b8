"""LBGAT: the classifier's boundary guided by a naturally trained one (Cui et al., arXiv:2011.11164, ICCV 2021)."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import prediction_divergence
from ..norm import norm_branch
from ..pixels import in_pixels
from ._base import Terms, accuracy, precise
from ._divergence import DivergenceAttack
from ._frozen import check_classes
from ._split import split
from .configs import LBGATConfig


class LBGAT(DivergenceAttack):
    """mean_{i,k} (f_k(x'_i) - g_k(x_i))^2 + CE(g(x), y) + beta KL(p_f(x) || p_f(x')), with a teacher g trained along.

    f and g are logits; no cross-entropy is on f. As in the authors' code (dvlab-research/LBGAT f7f33f0): the squared
    distance is a mean over images and classes, g's logits are not detached, so it is also pulled towards f(x'); one
    optimizer trains both; the attack climbs TRADES' divergence on f in eval mode; and f sees x', then x, each a batch
    of its own, also at beta 0, where the clean pass only moves the running statistics. Deviations: the attack starts
    from a uniform point of the ball, not from x + 0.001 N(0, 1), and its clean prediction, the same at every step, is
    made once. `detach`, `split_norm` and `clean_pass=False` are ablations of ours; with split norms the clean pass goes
    through the auxiliary branch, and the attack and its clean prediction through the main one, which is deployed.

    Args:
        teacher: A timm model of as many classes, g; it is trained and saved with the method, and neither averaged,
            perturbed by AWP, nor exported.
        model, config, attack, settings: see `Method`.

    Raises:
        ValueError: no teacher, or one of other classes; an attack without a random start; no norm of the kind to split.
    """

    Config = LBGATConfig
    clean_branch = "aux"
    config: LBGATConfig
    trained_along = ("teacher",)

    def __init__(
        self, model: nn.Module, config: LBGATConfig | None = None, *, teacher: nn.Module | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, config, teacher=teacher, **kwargs)
        assert teacher is not None
        check_classes(self.model, teacher)
        split(self.model, self.config.split_norm)
        self.teacher = in_pixels(teacher)

    @classmethod
    def needs_teacher(cls, config: Any) -> bool:
        return True

    def clean_logits(self, x: Tensor) -> Tensor:
        """Logits NxK of clean images in [0, 1], by the auxiliary branch where the norms are split."""
        with norm_branch(self.model, "aux") if self.config.split_norm != "none" else nullcontext():
            return self.network(x)

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        beta = self.config.beta
        logits_adv = precise(self.network(x_adv))  # NxK, as all below
        if self.config.clean_pass:
            # At beta 0 nothing is to be learnt from it, but it moves the running statistics.
            with nullcontext() if beta else torch.no_grad():
                logits_clean = precise(self.clean_logits(x))
        logits_teacher = precise(self.teacher(x))
        target = logits_teacher.detach() if self.config.detach else logits_teacher
        losses = {"mse": F.mse_loss(logits_adv, target), "ce_teacher": F.cross_entropy(logits_teacher, y)}
        log = {"acc_adv": accuracy(logits_adv, y), "acc_teacher": accuracy(logits_teacher, y)}
        if beta:
            losses["kl"] = prediction_divergence(logits_clean, logits_adv)
        if self.config.clean_pass:
            log["acc_clean"] = accuracy(logits_clean, y)
        return Terms(losses, {name: beta if name == "kl" else 1.0 for name in losses}, logits_adv, log)
