"""Growth of time and memory, drawn."""

from pathlib import Path
from typing import Any

# Title of the axis by axis of growth.
AXES = {"batch": "images a batch", "steps": "PGD steps", "model": "parameters", "processes": "processes at once"}


def plot_growth(growth: dict[str, Any], path: Path) -> None:
    """A column an axis: seconds above, MiB below; a line a side."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is not installed: pip install timm_arat[plot]") from error
    figure = Figure(figsize=(3.6 * len(AXES), 5.6), layout="constrained")
    axes = figure.subplots(2, len(AXES), squeeze=False, sharex="col")
    for column, (axis, title) in enumerate(AXES.items()):
        for row, (key, unit) in enumerate((("seconds", "seconds a step"), ("mib", "peak, MiB"))):
            panel = axes[row][column]
            for side, points in _lines(axis, growth[axis], key).items():
                style = "o" if axis == "model" else "o-"
                panel.plot(*zip(*sorted(points), strict=True), style, label=side)
            panel.set_ylim(bottom=0)
            panel.set_ylabel(unit)
            panel.legend()
        if axis == "model":
            axes[1][column].set_xscale("log")
        axes[1][column].set_xlabel(title)
    figure.savefig(path, dpi=110)


def _lines(axis: str, points: dict[str, Any], key: str) -> dict[str, list[tuple[float, float]]]:
    """The points (x, y) of each side; where only ours is measured, of ours."""
    if axis == "model":
        return {"ours": [(point["parameters"], point[key]) for point in points.values()]}
    if axis == "processes":
        return {"ours": [(float(x), point[key]) for x, point in points.items()]}
    sides = next(iter(points.values()))
    return {side: [(float(x), point[side][key]) for x, point in points.items()] for side in sides}
