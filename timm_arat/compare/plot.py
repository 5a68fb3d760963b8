"""The pictures of a comparison: clean accuracy against the strongest attack's, and both against time."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .outcome import ATTACKS, COSTS, Line, clock, curves, strongest, sums
from .progress import Curve

Point = tuple[float, float]
MARKERS = "os^D"


def plot(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw what was measured into `folder`; returns the pictures that there is something for.

    Raises:
        ImportError: matplotlib is missing.
    """
    training, drawn = f"training, {COSTS[clock(lines)]}", []
    if robust := strongest(lines):
        accuracies = _points({line.name: (line.values(robust), line.values("clean")) for line in lines})
        times = _points({line.name: (line.values(clock(lines)), sums(line, robust)) for line in lines})
        attacked, best = ATTACKS[robust], frontier(list(accuracies.values()))
        if accuracies:
            drawn.append(_scatter(accuracies, best, folder / "accuracy.png", f"{attacked}, %", "clean, %"))
        if times:
            drawn.append(_scatter(times, [], folder / "time.png", training, f"clean + {attacked}, %"))
    if found := curves(lines):
        drawn.append(_lines(found, folder / "held_out.png", training, "held-out clean + robust, %"))
    return drawn


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those to which no other is as good in both coordinates and better in one, from left to right."""
    best: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def _points(found: Mapping[str, tuple[list[float], list[float]]]) -> dict[str, Point]:
    """Means over the seeds, of the rows that have both."""
    return {name: (statistics.mean(x), statistics.mean(y)) for name, (x, y) in found.items() if x and y}


def _scatter(points: dict[str, Point], best: Sequence[Point], path: Path, across: str, up: str) -> Path:
    figure, axis = _empty(across, up)
    if best:
        axis.plot(*zip(*best, strict=True), color="grey", linestyle="--", label="frontier", zorder=1)
    # Names beside the picture: near points, names in it would lie on each other. A marker for every ten colours. With a
    # space before it, since matplotlib leaves a name that begins with _ out of the legend.
    for number, (name, (x, y)) in enumerate(points.items()):
        axis.scatter([x], [y], label=f" {name}", alpha=0.8, zorder=2, **_style(number))
    return _save(figure, path)


def _lines(found: Mapping[str, Sequence[Curve]], path: Path, across: str, up: str) -> Path:
    """A line a run, of the same colour for all seeds of a row."""
    figure, axis = _empty(across, up)
    for number, (name, runs) in enumerate(found.items()):
        for seed, run in enumerate(runs):
            axis.plot(*zip(*run, strict=True), label=None if seed else f" {name}", alpha=0.8, **_style(number))
    return _save(figure, path)


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "marker": MARKERS[number // 10 % len(MARKERS)]}


def _empty(across: str, up: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is not installed: pip install timm_arat[plot]; the tables are written") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    return figure, axis


def _save(figure: Any, path: Path) -> Path:
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    return path
