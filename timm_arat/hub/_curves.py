"""What a card shows beside its results: accuracy against eps, and against the mix of the two branches; measured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from ..evaluation import Robustness, evaluate
from ..evaluation._where import command_line
from ..models import create
from ..models._json import read_json
from ..models._weights import AUX_NORM
from ..norm import load_aux_norm, merge_split_norm
from ._public import public_command

FILE = "curves.json"
EPS_SHARES = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the eps that the model was trained for
MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Curves:
    """eps: results at rising bounds. mix: (share of the auxiliary branch, result), from the published norms' own share
    on; empty where there is one branch."""

    eps: tuple[Robustness, ...]
    mix: tuple[tuple[float, Robustness], ...] = ()

    def save(self, folder: Path) -> None:
        fields = {
            "eps": [result.to_json() for result in self.eps],
            "mix": [{"mix": mix, "result": result.to_json()} for mix, result in self.mix],
        }
        (folder / FILE).write_text(json.dumps(fields, indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> "Curves":
        """ValueError, naming the file, if it is not what `save` wrote."""
        fields = read_json(folder / FILE)
        try:
            return Curves(
                tuple(map(Robustness.from_json, fields["eps"])),
                tuple((point["mix"], Robustness.from_json(point["result"])) for point in fields["mix"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / FILE} is not what assembling a run writes ({error}): do it again") from error


def measure(folder: Path, data: Any, results: Robustness, images: int, published_mix: float = 0.0) -> Curves:
    """Clean accuracy and PGD-20 of the model in `folder` on `images` stratified images, for the threat of `results`.

    published_mix: the share of the auxiliary branch in the folder's norms.

    Every point is of the same images, and with the settings of `results`: on its images, its numbers come out.
    """
    settings: dict[str, Any] = dict(
        attacks=("clean", "pgd"),
        pgd_images=images,
        norm=results.norm,
        seed=results.seed,
        batch_size=results.batch_size,
        fast=results.fast,
        command=public_command(command_line()),
    )
    name, eps = folder.name, results.eps
    plain = create(f"local-dir:{folder}", pretrained=True)
    at_eps = tuple(evaluate(plain, data, eps=share * eps, name=name, **settings) for share in EPS_SHARES)
    if not (folder / AUX_NORM).exists():
        return Curves(at_eps)
    shares = sorted({published_mix, *(mix for mix in MIXES if mix > published_mix)})
    # The folder's main branch holds the share `published_mix` already: so much of the rest makes it the wanted one.
    more = {mix: (mix - published_mix) / (1 - published_mix) if mix > published_mix else 0.0 for mix in shares}
    mixed = ((mix, merge_split_norm(split_model(folder), mix=share)) for mix, share in more.items())
    return Curves(
        at_eps,
        tuple((mix, evaluate(model, data, eps=eps, name=f"{name} mix {mix}", **settings)) for mix, model in mixed),
    )


def split_model(folder: Path) -> nn.Module:
    """The model in `folder` with both of its branches."""
    model = create(f"local-dir:{folder}", pretrained=True)
    load_aux_norm(model, load_file(folder / AUX_NORM))
    return model


def points(results: Sequence[Robustness]) -> list[tuple[float, float, float, float]]:
    """(eps, accuracy under PGD-20, low, high) of each."""
    return [(r.eps, r.pgd.accuracy, *r.pgd.interval) for r in results if r.pgd]
