"""Standard AutoAttack (Croce and Hein, arXiv:2003.01690) from the parts of the official package."""

import logging
from collections.abc import Sequence
from functools import partial

import pyautoattack
import torch
from torch import Tensor, nn

from timm_arat.attacks import Perturbed
from timm_arat.evaluation._loop import Attack
from timm_arat.evaluation._model import device_of

# It logs a line for every batch with a zero gradient. Those are counted by PGD and reported once, as a warning.
logging.getLogger("auto-attack").addHandler(logging.NullHandler())

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
TARGETED_DLR_CLASSES = 4  # the loss divides by a difference to the third and fourth largest logit
STANDARD = "standard"
MARGIN = "not the standard version: APGD-T climbs the margin, since its DLR loss needs 4 classes"
L1_TARGETS = 5  # of APGD-T in the standard version
SQUARE_GRID = 5  # Square starts its l2 and l1 search from a grid of 5 x 5 tiles


def standard_attacks(model: nn.Module, num_classes: int, *, norm: str, eps: float, seed: int) -> dict[str, Attack]:
    """The four attacks of version 'standard': 100 steps, 9 targets (APGD-T for l1: 5), 5,000 queries; nothing weakened.

    Fewer than 10 classes leave num_classes - 1 targets at most (the package fails there). Fewer than 4 have no targeted
    DLR loss, which compares four logits; in its place APGD-T climbs the margin, the target's logit less that of the
    right class: what the loss is without its divisor, which the steps of APGD ignore.
    """
    official = pyautoattack.AutoAttack(
        model, norm=NORMS[norm], eps=eps, seed=seed, version="standard", device=device_of(model)
    )
    official.apgd.loss = "ce"
    official.fab.targeted = True
    for targeted in (official.apgd_targeted, official.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, num_classes - 1)
    if num_classes < TARGETED_DLR_CLASSES:
        official.apgd_targeted.dlr_loss_targeted = partial(_targeted_margin, official.apgd_targeted)
    parts = dict(zip(ATTACKS, (official.apgd, official.apgd_targeted, official.fab, official.square), strict=True))
    for part in parts.values():
        part.seed = seed
    return {name: partial(_perturb, part) for name, part in parts.items()}


def describe(num_classes: int, norms: Sequence[str]) -> str:
    """What a result says of the version that `standard_attacks` gives; it begins with STANDARD if it is that."""
    version = STANDARD if num_classes >= TARGETED_DLR_CLASSES else MARGIN
    if num_classes >= 10:
        return version
    targets = f"{num_classes - 1} target{'s' * (num_classes > 2)}"
    of_l1 = f" ({L1_TARGETS} of APGD-T for l1)" * ("l1" in norms and num_classes - 1 > L1_TARGETS)
    return f"{version}, {targets}{of_l1}"


def check_size(x: Tensor, norm: str) -> None:
    """ValueError if Square cannot search images of this size, NxCxHxW: it would fail after hours of other attacks."""
    height, width = x.shape[2:]
    if norm != "linf" and (height != width or height < SQUARE_GRID):
        raise ValueError(
            f"images are {height}x{width}, and AutoAttack's Square takes square ones of at least {SQUARE_GRID} pixels "
            f"for {norm}: resize them, or leave AutoAttack out, attacks=('clean', 'pgd')"
        )


def _perturb(part: pyautoattack.AutoAttack, x: Tensor, y: Tensor) -> Perturbed:
    return Perturbed(part.perturb(x, y), torch.zeros(len(x), dtype=torch.bool))


def _targeted_margin(part: pyautoattack.AutoAttack, logits: Tensor, y: Tensor) -> Tensor:
    """NxK and N to N, for the targets that `part` chose."""
    rows = torch.arange(len(logits))
    return logits[rows, part.y_target] - logits[rows, y]
