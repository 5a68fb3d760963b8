"""Are clean and adversarial images two distributions to the network? (Figs. 3 and 13 of the ARAT paper.)"""

from typing import Any

from torch import Tensor

from .estimate import Estimate, estimate
from .features import Features, Seen
from .invariance import invariance


def distance(z: Tensor, z_adv: Tensor) -> Estimate:
    """The mean of ||z'_i - z_i||_2 over the N images, for clean and adversarial features NxC."""
    return estimate((z_adv.double() - z.double()).norm(dim=1))


def statistics(z: Tensor) -> dict[str, list[float]]:
    """Mean and (unbiased) standard deviation over the N images of each channel of features NxC."""
    z = z.double()
    std = z.std(0) if len(z) > 1 else z.new_zeros(z.shape[1])
    return {"mean": z.mean(0).tolist(), "std": std.tolist()}


def compare(seen: Seen, *, channels: bool = True) -> dict[str, Any]:
    """By layer: distance and invariance, once through the main branch for both kinds of image (`main`, the official
    definition) and once with the clean images through the branch of their own (`own`, None without split norms); and
    with `channels`, `statistics` of the adversarial images and of the clean ones by each branch."""
    found: dict[str, Any] = {}
    for layer, z_adv in seen.adv.items():
        row: dict[str, Any] = {
            "main": _pair(seen.clean[layer], z_adv),
            "own": None if seen.own is None else _pair(seen.own[layer], z_adv),
        }
        if channels:
            sides: dict[str, Features | None] = {"adv": seen.adv, "clean": seen.clean, "clean_own": seen.own}
            row["statistics"] = {name: statistics(each[layer]) for name, each in sides.items() if each is not None}
        found[layer] = row
    return found


def _pair(z: Tensor, z_adv: Tensor) -> dict[str, Any]:
    return {"distance": distance(z, z_adv).to_json(), "invariance": invariance(z, z_adv).to_json()}
