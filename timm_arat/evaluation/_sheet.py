"""A contact sheet of adversarial images: what they looked like before, after, and what was added."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ._kept import STAGES

if TYPE_CHECKING:
    from ._adversarial import Adversarial

ROWS = 8
NAME_LENGTH = 24


def draw(found: "Adversarial", title: str, class_names: Sequence[str], path: Path) -> None:
    """A PNG of some rows, evenly spread over the images that are right before the attack: broken or not, as they come.

    Grey in the difference is what no attack changed; its scale is one for the sheet, and stands above it.
    """
    right = (found.before == found.y).nonzero().flatten()
    shown = right if len(right) else torch.arange(len(found.y))
    shown = shown[torch.linspace(0, len(shown) - 1, min(ROWS, len(shown))).round().long()]
    difference = found.x_adv[shown] - found.x[shown]
    largest = difference.abs().max().item()
    scale = 0.5 / largest if largest else 1.0
    rows, height, width = len(shown), *found.x.shape[2:]
    side = 1.7
    figure = Figure(
        figsize=(3 * side * max(1.0, width / height) + 1.2, rows * (side + 0.42) + 0.8), layout="constrained"
    )
    figure.suptitle(title, parse_math=False, fontsize="medium")
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, (index, added) in enumerate(zip(shown.tolist(), difference, strict=True)):
        y, before, after = (int(each[index]) for each in (found.y, found.before, found.after))
        attack = STAGES[int(found.attack[index])]
        words = (
            f"{_name(before, class_names)}" + ("" if before == y else f" (is {_name(y, class_names)})"),
            f"{_name(after, class_names)}\n{'not attacked' if attack == 'clean' else f'after {attack}'}",
            f"image {int(found.positions[index])}",
        )
        pictures = (found.x[index], found.x_adv[index], added * scale + 0.5)
        for axis, image, said in zip(axes[row], pictures, words, strict=True):
            _show(axis, image, said, colour="tab:red" if said == words[1] and after != y else "black")
    for axis, head in zip(axes[0], ("clean", "adversarial", f"difference x {scale:.3g}"), strict=True):
        axis.set_title(head, fontsize="medium")
    figure.savefig(path, dpi=110, format="png")


def _show(axis: Axes, image: Tensor, said: str, colour: str) -> None:
    """An image, CxHxW in [0, 1]; of other than three channels the first, as grey."""
    if len(image) == 3:
        axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
    else:
        axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(said, fontsize="small", color=colour, parse_math=False)


def _name(number: int, class_names: Sequence[str]) -> str:
    name = class_names[number] if number < len(class_names) else str(number)
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}\u2026"
