"""Pooled features of clean and adversarial images, by branch and layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..modes import evaluating
from ..norm import branch_if_split, is_split
from ..pixels import InPixels
from ..taps import tap

Features = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """Features by layer, NxC each, on the CPU in float32; row i of each is of image i.

    Attributes:
        adv: Of the adversarial images, by the main branch.
        clean: Of the clean images by the main branch, as the official code takes them.
        own: Of the clean images by the auxiliary branch, where training had them so (ARAT, LBGAT); else None.
    """

    adv: Features
    clean: Features
    own: Features | None = None

    @staticmethod
    def joined(parts: Sequence["Seen"]) -> "Seen":
        """All images of `parts`, which is what several processes saw, one after another."""

        def join(features: Sequence[Features]) -> Features:
            return {layer: torch.cat([each[layer] for each in features]) for layer in features[0]}

        own = [part.own for part in parts if part.own is not None]
        return Seen(join([p.adv for p in parts]), join([p.clean for p in parts]), join(own) if own else None)


def see(
    network: InPixels, x: Tensor, x_adv: Tensor, layers: Sequence[str] = (), *, batch: int = 250, own: bool = True
) -> Seen:
    """The features of `x` and `x_adv` (NxCxHxW in [0, 1]) in eval mode, `batch` images at a time; layers as of `tap`.

    own: whether the auxiliary branch, where norms are split, is that of clean images (`Method.clean_branch`).

    Official code: both kinds of image go through the adversarial branch, and the features are pooled. Deviation: there
    the clean images carry the noise at which the attack began, since its attack writes into them.
    """
    with evaluating(network):
        adv, clean = (_pooled(network, images, layers, "main", batch) for images in (x_adv, x))
        clean_by_aux = _pooled(network, x, layers, "aux", batch) if own and is_split(network) else None
    return Seen(adv, clean, clean_by_aux)


@torch.no_grad()
def _pooled(network: InPixels, x: Tensor, layers: Sequence[str], branch: Any, batch: int) -> Features:
    device = next(network.parameters()).device
    found: dict[str, list[Tensor]] = {}
    with branch_if_split(network, branch):
        for images in x.split(batch):
            for layer, z in tap(network.model, network.normalize(images.to(device)), layers)[1].items():
                found.setdefault(layer, []).append(z.float().cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}
