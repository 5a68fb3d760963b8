"""The rows of one or several trainings, drawn as Figs. 2 to 4 of the ARAT paper. Needs matplotlib."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Line = tuple[str, list[float], list[float]]  # label, x, y


def draw(runs: Mapping[str, Rows], folder: Path) -> list[Path]:
    """Figures of `runs`, rows by the run's name, into `folder`; the files written. A line a run, and a pair or layer.

    similarity.png, conflict.png and norms.png are over optimizer steps, distance.png and drift.png over epochs; one
    for which no run has rows is left out.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if not runs:
        return []
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the figures need matplotlib: pip install timm_arat[plot], or give --figures false"
        ) from error
    kinds: dict[str, tuple[Callable[[Rows], dict[str, Line]], str, str]] = {
        "similarity": (lambda rows: _pairs(rows, "cos"), "optimizer step", "cosine of the gradients"),
        "conflict": (lambda rows: _pairs(rows, "share"), "optimizer step", "share of weights in conflict"),
        "norms": (_norms, "optimizer step", "length of the weighted gradient"),
        "distance": (_distances, "epoch", "||z' - z||"),
        "drift": (_drifts, "epoch", "1 - cos of z' to the epoch before"),
    }
    written = []
    for name, (lines_of, x_label, y_label) in kinds.items():
        lines = [(run, line) for run, rows in runs.items() for line in lines_of(rows).values()]
        if not lines:
            continue
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axis = figure.subplots()
        for run, (label, xs, ys) in lines:
            axis.plot(xs, ys, ".-", label=f"{Path(run).name}: {label}")
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.legend(fontsize="small")
        path = folder / f"analysis_{name}.png"
        figure.savefig(path, dpi=110)
        written.append(path)
    return written


def _lines(points: Iterator[tuple[str, float, float | None]]) -> dict[str, Line]:
    """Points (label, x, y), some without a y, by their label."""
    found: dict[str, Line] = {}
    for label, x, y in points:
        if y is not None:
            _, xs, ys = found.setdefault(label, (label, [], []))
            xs.append(x)
            ys.append(y)
    return found


def _of(rows: Rows, kind: str) -> Iterator[dict[str, Any]]:
    return (row for row in rows if row["kind"] == kind)


def _pairs(rows: Rows, key: str) -> dict[str, Line]:
    return _lines(
        (terms.replace("|", " and "), row["step"], pair[key])
        for row in _of(rows, "conflict")
        for terms, pair in row["whole"]["pairs"].items()
    )


def _norms(rows: Rows) -> dict[str, Line]:
    return _lines(
        (term, row["step"], length)
        for row in _of(rows, "conflict")
        for term, length in row["whole"]["weighted_norms"].items()
    )


def _distances(rows: Rows) -> dict[str, Line]:
    return _lines(
        (f"{layer}, {'main branch' if side == 'main' else 'own branches'}", row["epoch"], pair["distance"]["mean"])
        for row in _of(rows, "epoch")
        for layer, sides in row["layers"].items()
        for side, pair in sides.items()
        if pair is not None
    )


def _drifts(rows: Rows) -> dict[str, Line]:
    return _lines(
        (layer, row["epoch"], moved["mean"]) for row in _of(rows, "epoch") for layer, moved in row["drift"].items()
    )
