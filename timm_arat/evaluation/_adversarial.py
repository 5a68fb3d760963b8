"""The adversarial images of an evaluation, as files for others to use and to look at."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..files import write_atomically
from ._kept import STAGES, Kept, metadata_of
from ._robustness import Robustness, eps_text
from ._selection import Selection

FORMAT = "timm_arat.adversarial/1"
IMAGES, PICTURE = "adversarial.safetensors", "adversarial.png"


@dataclass(frozen=True)
class Adversarial:
    """One adversarial image for each of the evaluation's images, in their order.

    Of the attacks that a result stands on, AutoAttack's four count before PGD: x_adv is what the first of the four
    that broke the image made of it, else what PGD did; where PGD did not break it either, where PGD ended. It is x
    where the model is wrong without an attack, or where no attack left anything.

    x, x_adv: NxCxHxW in [0, 1]. y, positions: N, classes of the model and places in the data set. before, after: N,
    the model's answers to x and, as the attack saw it, to x_adv. attack: N, by whom, as a place in `STAGES`.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    positions: Tensor
    before: Tensor
    after: Tensor
    attack: Tensor

    @staticmethod
    def collect(images: Selection, kept: Kept) -> "Adversarial":
        """Put together what the batches left. Every image of the selection was in a batch of clean."""
        x_adv, before = images.x.clone(), torch.full_like(images.y, -1)
        for batch in kept.batches("clean"):
            before[batch["index"]] = batch["prediction"]
        after, attack = before.clone(), torch.zeros_like(images.y)
        for place, stage in enumerate(STAGES[1:], start=1):
            for batch in kept.batches(stage):
                index, prediction = batch["index"], batch["prediction"]
                taken = torch.ones_like(index, dtype=torch.bool) if stage == "pgd" else prediction != images.y[index]
                after[index[taken]] = prediction[taken]
                attack[index[taken]] = place
                moved = torch.isin(batch["moved"], index[taken])
                x_adv[batch["moved"][moved]] = batch["x_adv"][moved]
        return Adversarial(images.x, x_adv, images.y, images.positions, before, after, attack)

    def save(self, folder: Path, result: Robustness, evaluation: str) -> None:
        """Write `folder`, whole or not at all: the images and, if matplotlib is installed, a sheet to look at."""
        metadata = {
            "format": FORMAT,
            "evaluation": evaluation,
            "model": result.model,
            "weights": result.weights,
            "data": f"{result.data.name} {result.data.split}".strip(),
            "norm": result.norm,
            "eps": repr(result.eps),
            "attack_names": json.dumps(STAGES),
            "attacks": json.dumps(result.attacks),
            "class_names": json.dumps(result.class_names),
        }

        def write(aside: Path) -> None:
            aside.mkdir()
            tensors = {name: getattr(self, name).contiguous() for name in self.__dataclass_fields__}
            save_file(tensors, aside / IMAGES, metadata)
            if find_spec("matplotlib"):
                from ._sheet import draw

                draw(self, f"{result.model}, {result.norm} {eps_text(result.eps)}", result.class_names, aside / PICTURE)

        write_atomically(folder, write)


def check_folder(folder: Path, evaluation: str | None = None) -> None:
    """Refuse to replace what lies in `folder`, unless it is what `save` wrote: of this evaluation, where one is given.

    Raises:
        ValueError: it is a file, or it holds something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"save_adversarial={str(folder)!r} is a file, wanted a folder: give another name")
    other = sorted(path.name for path in folder.iterdir() if path.name not in (IMAGES, PICTURE))
    if other:
        raise ValueError(
            f"save_adversarial={str(folder)!r} holds {other[0]}, and the folder is written as a whole: give a new one"
        )
    if evaluation is not None and any(folder.iterdir()):
        if metadata_of(folder / IMAGES).get("evaluation") != evaluation:
            raise ValueError(
                f"save_adversarial={str(folder)!r} holds the images of another evaluation: give a new folder, or "
                "delete it"
            )
