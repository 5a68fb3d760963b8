"""How soon a training is how good: held-out accuracy by epoch, against the time of its steps so far."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Curve = Sequence[tuple[float, float]]  # (minutes so far, held-out clean + robust accuracy in %), an epoch each
STEP = 10  # % between the levels of the table


def curve(rows: Sequence[Mapping[str, Any]], clock: str) -> Curve:
    """Of summary.jsonl by its column of seconds `clock`; empty where it has no such column or no validation."""
    if any(clock not in row or "val_robust" not in row for row in rows):
        return ()
    minutes, found = 0.0, []
    for row in rows:
        minutes += row[clock] / 60
        found.append((minutes, 100 * (row["val_clean"] + row["val_robust"])))
    return tuple(found)


def until(run: Curve, level: float) -> float | None:
    """Minutes until the sum is at least `level` for the first time; None if it never is."""
    return next((minutes for minutes, total in run if total >= level), None)


def markdown(curves: Mapping[str, Sequence[Curve]], reference: str, unit: str) -> list[str]:
    """A table of the minutes until each level that the reference reaches, means over seeds, and how many times less.

    Args:
        curves: Of each row, a curve a seed.
        unit: What the minutes are, such as 'processor minutes'.
    """
    best = [max(total for _, total in run) for run in curves.get(reference, ()) if run]
    if not best:
        return []
    highest = int(min(best) // STEP) * STEP
    levels = [level for level in range(highest - 2 * STEP, highest + STEP, STEP) if level > 0]
    times = {name: [_mean(runs, level) for level in levels] for name, runs in curves.items()}
    text = ["| row | " + " | ".join(f"until {level}" for level in levels) + " |", "|---" * (len(levels) + 1) + "|"]
    for name, row in times.items():
        cells = [
            "-" if here is None or there is None else f"{here:.1f} ({there / here:.1f}x)"
            for here, there in zip(row, times[reference], strict=True)
        ]
        text.append(f"| {name} | {' | '.join(cells)} |")
    legend = (
        f"Training, {unit}, until the held-out sum, which is measured after each epoch, is at least so; in brackets, "
        f"{reference}'s over it."
    )
    return [*text, "", legend]


def _mean(runs: Sequence[Curve], level: float) -> float | None:
    """None unless every seed reaches the level."""
    found = [until(run, level) for run in runs]
    reached = [minutes for minutes in found if minutes is not None]
    return statistics.mean(reached) if reached and len(reached) == len(found) else None
