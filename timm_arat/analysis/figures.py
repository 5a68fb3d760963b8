"""The rows of one or several trainings, drawn as Figs. 2 to 4 of the ARAT paper. Needs matplotlib."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Line = tuple[str, list[float], list[float]]  # label, x, y


def draw(runs: Mapping[str, Rows], folder: Path) -> list[Path]:
    """Draw `runs`, rows by the run's name, into `folder`: a panel a pair or layer, a line a run. Returns the files.

    analysis_similarity.png, ..._conflict.png and ..._norms.png are over optimizer steps, ..._distance.png and
    ..._drift.png over epochs; one for which no run has rows is left out.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if not runs:
        return []
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator
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
    colors = {run: f"C{number}" for number, run in enumerate(runs)}
    written = []
    for name, (lines_of, x_label, y_label) in kinds.items():
        panels: dict[str, list[tuple[str, Line]]] = {}
        for run, rows in runs.items():
            for line in lines_of(rows).values():
                panels.setdefault(line[0], []).append((run, line))
        if not panels:
            continue
        figure = Figure(figsize=(1.5 + 3.4 * len(panels), 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (label, found) in zip(axes, panels.items(), strict=True):
            for run, (_, xs, ys) in found:
                axis.plot(xs, ys, ".-", color=colors[run])
            axis.set_title(label, fontsize="medium", parse_math=False)
            axis.set_xlabel(x_label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes[0].set_ylabel(y_label)
        shown = {run for found in panels.values() for run, _ in found}
        handles = [Line2D([], [], color=colors[run], label=Path(run).name) for run in runs if run in shown]
        figure.legend(handles=handles, loc="outside right upper", fontsize="small")
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
