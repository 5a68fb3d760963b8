"""The pictures of a comparison: clean accuracy against the strongest attack's, and their sum against time."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from .table import ATTACKS, Line, strongest, sums

Point = tuple[float, float]
MARKERS = "os^D"


def plot(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw what was measured into `folder`; returns the pictures, none where nothing was attacked.

    Raises:
        ImportError: matplotlib is missing.
    """
    robust = strongest(lines)
    accuracies = _points({line.name: (line.values(robust), line.values("clean")) for line in lines})
    if not accuracies:
        return []
    # On a GPU the processor mostly waits, so there time is the clock's.
    gpu = any(not each.result.device.endswith("cpu") for line in lines for each in line.outcomes)
    clock = "minutes" if gpu else "processor_minutes"
    times = _points({line.name: (line.values(clock), sums(line, robust)) for line in lines})
    drawn = [
        _scatter(
            accuracies,
            frontier(list(accuracies.values())),
            folder / "accuracy.png",
            f"{ATTACKS[robust]}, %",
            "clean, %",
        )
    ]
    if times:
        label = "training, minutes" if gpu else "training, processor minutes"
        drawn.append(_scatter(times, [], folder / "time.png", label, f"clean + {ATTACKS[robust]}, %"))
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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is not installed: pip install timm_arat[plot]; the tables are written") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    if best:
        axis.plot(*zip(*best, strict=True), color="grey", linestyle="--", label="frontier", zorder=1)
    # Names beside the picture: near points, names in it would lie on each other. A marker for every ten colours. With a
    # space before it, since matplotlib leaves a name that begins with _ out of the legend.
    for number, (name, (x, y)) in enumerate(points.items()):
        marker = MARKERS[number // 10 % len(MARKERS)]
        axis.scatter([x], [y], label=f" {name}", color=f"C{number % 10}", marker=marker, alpha=0.8, zorder=2)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    return path
