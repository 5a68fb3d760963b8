"""Standard AutoAttack (Croce and Hein, arXiv:2003.01690) from the parts of the official package."""

import logging
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


def standard_attacks(model: nn.Module, num_classes: int, *, norm: str, eps: float, seed: int) -> dict[str, Attack]:
    """The four attacks of version 'standard': 100 steps, 9 targets, 5,000 queries; nothing weakened.

    Fewer than 10 classes leave num_classes - 1 targets, for APGD-T and FAB-T alike (the package fails there).

    Raises:
        ValueError: fewer than 4 classes, for which the targeted DLR loss is not defined.
    """
    if num_classes < TARGETED_DLR_CLASSES:
        raise ValueError(
            f"standard AutoAttack needs at least {TARGETED_DLR_CLASSES} classes (its targeted DLR loss compares four "
            f"logits), the model has {num_classes}: leave AutoAttack out, attacks=('clean', 'pgd')"
        )
    official = pyautoattack.AutoAttack(
        model, norm=NORMS[norm], eps=eps, seed=seed, version="standard", device=device_of(model)
    )
    official.apgd.loss = "ce"
    official.fab.targeted = True
    for targeted in (official.apgd_targeted, official.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, num_classes - 1)
    parts = dict(zip(ATTACKS, (official.apgd, official.apgd_targeted, official.fab, official.square), strict=True))
    for part in parts.values():
        part.seed = seed
    return {name: partial(_perturb, part) for name, part in parts.items()}


def _perturb(part: pyautoattack.AutoAttack, x: Tensor, y: Tensor) -> Perturbed:
    return Perturbed(part.perturb(x, y), torch.zeros(len(x), dtype=torch.bool))
