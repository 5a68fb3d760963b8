"""DAJAT: diverse augmentations trained on jointly (Addepalli et al., arXiv:2210.15318, NeurIPS 2022)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import PGD, check, climb, ready
from ..fold import Plan
from ..losses import jensen_shannon, prediction_divergence
from ..norm import norm_branch
from ._base import Terms, accuracy, precise
from ._divergence import DivergenceAttack
from ._split import split
from .configs import DAJATConfig


class DAJAT(DivergenceAttack):
    """Mean over views v of [CE(f(x_v), y) + beta KL(p(x_v) || p(x'_v))] + weight_js JS(p(x_0), ..., p(x_n)).

    View 0 is the batch as it comes, by the main norms; the n others are AutoAugment's, made here, and share the
    auxiliary norms. Each has an attack of its own, on its own branch. Without further views (`views=0`) this is ACAT,
    the same paper's training on one view. `perturb` gives the views of all images one after another, (1 + n) N in all,
    and `terms` takes them so, with the N labels.

    As in the authors' code (val-iisc/DAJAT f75a71d): nothing is detached, the attack climbs TRADES' divergence in eval
    mode, the Jensen-Shannon divergence is of clean predictions, and the deployed norms are those of the base view.
    What is theirs and stands elsewhere in a recipe: eps rises linearly over the run (`attack.warmup_epochs` of one
    epoch fewer than the run has), two steps of length eps (`attack.steps`, `attack.step_size`), AWP and EMA.

    Deviations: the attack starts from a uniform point of the ball, not from x + 0.001 N(0, 1); the views are made of
    the cropped and flipped batch, so they share its crop and flip, where the authors crop and flip each view by itself;
    AWP's direction is that of the whole loss, not of the base view's. AutoAugment draws from torch's global generator
    on the CPU, as the attacks' noise does, so that a resumed run sees the same views.

    Raises:
        ValueError: an attack without a random start, or no norm of the kind to split.
    """

    Config = DAJATConfig
    config: DAJATConfig

    def __init__(self, model: nn.Module, config: DAJATConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, config, **kwargs)
        if self.config.views:
            split(self.model, self.config.split_norm)
        self._aux_plan = Plan()

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self._aux_plan = Plan()

    def perturb(
        self, x: Tensor, y: Tensor, start: Tensor | None = None, attack: PGD | None = None
    ) -> tuple[Tensor, Tensor]:
        """All views of the images and their adversarial counterparts, each (1 + n) N x CxHxW, the base view first.

        Raises:
            ValueError: as the base's; or a start, which would be that of one view of several.
        """
        if start is not None and self.config.views:
            raise ValueError(
                f"DAJAT attacks {1 + self.config.views} views, and a start is of one: leave start (in a recipe, "
                "warm_start) out, or set views=0"
            )
        check(x, y, start)
        attack = self.checked(attack or self.attack)
        views = [x, *(autoaugment(x, self.config.policy) for _ in range(self.config.views))]
        found = []
        for number, view in enumerate(views):
            plan = self._aux_plan if number else self._plan
            with self._branch(number), ready(self.network, attack, view, plan):
                found.append(climb(attack, self.network, view, self.objective(view, y), start).x_adv)
        return torch.cat(views), torch.cat(found)

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        count = 1 + self.config.views
        if not len(x) == len(x_adv) == count * len(y):
            raise ValueError(
                f"DAJAT wants {count} views of the {len(y)} images that have labels, as perturb gives them; these are "
                f"{len(x)} images and {len(x_adv)} adversarial ones"
            )
        clean, adv = [], []  # NxK each
        for number, (view, view_adv) in enumerate(zip(x.chunk(count), x_adv.chunk(count), strict=True)):
            with self._branch(number):
                clean.append(precise(self.network(view)))
                adv.append(precise(self.network(view_adv)))
        smoothing = self.config.label_smoothing
        losses = {
            "ce_clean": _mean(F.cross_entropy(logits, y, label_smoothing=smoothing) for logits in clean),
            "kl": _mean(prediction_divergence(*pair) for pair in zip(clean, adv, strict=True)),
        }
        weights: dict[str, Tensor | float] = {"ce_clean": 1.0, "kl": self.config.beta}
        if self.config.views:
            losses["js"], weights["js"] = jensen_shannon(clean), self.config.weight_js
        log = {"acc_adv": accuracy(adv[0], y), "acc_clean": accuracy(clean[0], y)}
        return Terms(losses, weights, adv[0], log)

    def _branch(self, view: int) -> AbstractContextManager[Any]:
        if not self.config.views or self.config.split_norm == "none":
            return nullcontext()
        return norm_branch(self.model, "aux" if view else "main")


def autoaugment(x: Tensor, policy: str) -> Tensor:
    """AutoAugment (arXiv:1805.09501) of each image by draws of its own: NxCxHxW in [0, 1], C 1 or 3, to the same.

    The policy is torchvision's: cifar10, imagenet or svhn. It works on bytes, so pixels are rounded to 1/255.
    """
    # The first generation of torchvision's transforms: on single small images it is faster than v2. On the CPU, where
    # a few operations on each image cost less than as many kernels of a GPU.
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    augment = AutoAugment(AutoAugmentPolicy(policy))
    images = (x.detach() * 255).round().to("cpu", torch.uint8)
    return torch.empty_like(x).copy_(torch.stack([augment(image) for image in images])).div_(255)


def _mean(values: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
