"""The figures of a card: three from its JSON, one of the model's own mistakes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks import PGD
from ..evaluation import Robustness, eps_text
from ..files import read_rows
from ..models import create
from ..pixels import in_pixels
from ._curves import Curves, points

COLUMNS = 8  # images of the grid
LETTERS = 24  # of a class's name


def draw(folder: Path, results: Robustness, curves: Curves, images: tuple[Tensor, Tensor], labels: list[str]) -> None:
    """Write eps.png, classes.png, examples.png, with two branches mix.png, and with validation training.png.

    images: x, Nx3xHxW (or Nx1xHxW) in [0, 1], and y, N; of them the grid shows some, evenly spread over those that are
            classified rightly, or over all where none is: folders have their images class by class.
    """
    labels = [_short(label) for label in labels]
    _figure(folder / "eps.png", (5, 3.4), lambda axis: _eps(axis, results, curves))
    _figure(folder / "classes.png", (6, 3.4), lambda axis: _classes(axis, results, labels))
    model = in_pixels(create(f"local-dir:{folder}", pretrained=True)).eval()
    _examples(folder / "examples.png", model, images, results, labels)
    if curves.mix:
        _figure(folder / "mix.png", (5, 3.4), lambda axis: _mix(axis, curves))
    epochs = [row for row in read_rows(folder / "summary.jsonl") if "val_clean" in row]
    if epochs:
        _figure(folder / "training.png", (5, 3.4), lambda axis: _training(axis, epochs))


def _figure(path: Path, size: tuple[float, float], draw_on: Any) -> None:
    figure = _new_figure(size)
    draw_on(figure.subplots())
    figure.savefig(path, dpi=110)


def _new_figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a card needs matplotlib for its pictures: pip install timm_arat[plot]") from error
    return Figure(figsize=size, layout="constrained")


def _eps(axis: Any, results: Robustness, curves: Curves) -> None:
    found = points(curves.eps)
    clean = curves.eps[0].clean
    assert clean is not None
    found = [(0.0, clean.accuracy, *clean.interval), *found]
    scale = 255 if "/255" in eps_text(results.eps) else 1
    axis.errorbar(
        [scale * eps for eps, *_ in found],
        [100 * accuracy for _, accuracy, *_ in found],
        yerr=_bars([(accuracy, low, high) for _, accuracy, low, high in found]),
        marker="o",
        capsize=3,
        label=f"PGD-20 (n={clean.n})",
    )
    if (official := results.autoattack) is not None:
        error = _bars([(official.accuracy, *official.interval)])
        axis.errorbar(
            [scale * results.eps], [100 * official.accuracy], yerr=error, fmt="s", capsize=3,
            label=f"AutoAttack (n={official.n})",
        )  # fmt: skip
    axis.axvline(scale * results.eps, color="0.8", zorder=0)
    axis.set_xlabel(f"{results.norm} eps{' in 255ths' if scale == 255 else ''}")
    axis.set_ylabel("accuracy in %")
    axis.set_ylim(0, 100)
    axis.legend()


def _bars(found: list[tuple[float, float, float]]) -> list[list[float]]:
    """Lengths of the error bars in %, below and above, of (accuracy, low, high); never below 0 by rounding."""
    below = [100 * max(0.0, accuracy - low) for accuracy, low, _ in found]
    above = [100 * max(0.0, high - accuracy) for accuracy, _, high in found]
    return [below, above]


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}\u2026"


def _classes(axis: Any, results: Robustness, labels: list[str]) -> None:
    bars = {"clean": results.clean, "PGD-20": results.pgd, "AutoAttack": results.autoattack}
    drawn = {name: score for name, score in bars.items() if score is not None}
    width = 0.8 / len(drawn)
    for place, (name, score) in enumerate(drawn.items()):
        heights = [100 * right / n if n else 0.0 for right, n in score.per_class]
        positions = [k + (place - (len(drawn) - 1) / 2) * width for k in range(len(heights))]
        axis.bar(positions, heights, width, label=f"{name} (n={score.n})")
    # A class may be called $x_{, which is no formula.
    axis.set_xticks(
        range(len(labels)), labels, rotation=45 if max(map(len, labels)) > 2 else 0, ha="right", parse_math=False
    )
    axis.set_ylabel("accuracy in %")
    axis.set_ylim(0, 100)
    axis.figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(drawn), fontsize="small"
    )


def _training(axis: Any, epochs: list[dict[str, Any]]) -> None:
    for key, label in (("val_clean", "clean"), ("val_robust", "under PGD")):
        axis.plot([row["epoch"] for row in epochs], [100 * row[key] for row in epochs], marker=".", label=label)
    axis.set_xlabel("epoch")
    axis.set_ylabel("accuracy on held-out images in %")
    axis.set_ylim(0, 100)
    axis.legend()


def _mix(axis: Any, curves: Curves) -> None:
    clean = [100 * r.clean.accuracy for _, r in curves.mix if r.clean]
    robust = [100 * r.pgd.accuracy for _, r in curves.mix if r.pgd]
    axis.plot(clean, robust, marker="o")
    for (mix, _), x, y in zip(curves.mix, clean, robust, strict=True):
        axis.annotate(f"mix {mix:g}", (x, y), textcoords="offset points", xytext=(6, 6))
    first = curves.mix[0][1]
    assert first.pgd is not None
    axis.margins(x=0.25, y=0.15)
    axis.set_xlabel("clean accuracy in %")
    axis.set_ylabel(f"PGD-20 accuracy in %\n({first.norm} eps {eps_text(first.eps)}, n={first.pgd.n})")


def _spread(indices: Sequence[int]) -> list[int]:
    """COLUMNS of them, or all if there are fewer, from the first to the last."""
    places = torch.linspace(0, len(indices) - 1, min(COLUMNS, len(indices))).round().long()
    return [indices[place] for place in places.tolist()]


def _examples(
    path: Path, model: torch.nn.Module, images: tuple[Tensor, Tensor], results: Robustness, labels: list[str]
) -> None:
    """Clean images, adversarial ones and the difference, with the model's predictions."""
    x, y = images
    with torch.no_grad():
        clean = model(x).argmax(-1)
    chosen = _spread((clean == y).nonzero().flatten().tolist() or range(len(x)))
    x, y, clean = x[chosen], y[chosen], clean[chosen]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(results.seed)
        x_adv = PGD(norm=results.norm, eps=results.eps, steps=20)(model, x, y)
    with torch.no_grad():
        fooled = model(x_adv).argmax(-1)
    difference = x_adv - x
    rows = [
        ("clean", x, clean),
        ("PGD-20", x_adv, fooled),
        ("difference", 0.5 + difference / (2 * difference.abs().amax((1, 2, 3), keepdim=True)), None),
    ]
    figure = _new_figure((1.25 * len(x) + 0.3, 4.3))
    axes = figure.subplots(len(rows), len(x), squeeze=False)
    for axis_row, (title, pictures, predicted) in zip(axes, rows, strict=True):
        for column, (axis, picture) in enumerate(zip(axis_row, pictures, strict=True)):
            axis.imshow(picture.permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if predicted is not None:
                wrong = int(predicted[column]) != int(y[column])
                axis.set_title(
                    labels[int(predicted[column])],
                    fontsize="small",
                    color="tab:red" if wrong else "black",
                    parse_math=False,
                )
        axis_row[0].set_ylabel(title)
    figure.savefig(path, dpi=110)
