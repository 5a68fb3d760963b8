"""Which epoch's weights are a run's best: one rule, for training, a resume and the reports. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Select = Literal["sum", "robust", "clean"]


def score(row: Mapping[str, Any], select: Select) -> float:
    """What the best epoch is best at: accuracy in [0, 1], clean, robust or their sum; the first of equal ones is best.

    Without validation it is the number of the epoch, so that the last one is best.

    Args:
        row: An epoch's row of summary.jsonl: `epoch`, and with validation `val_clean` and `val_robust`.
    """
    if "val_robust" not in row:
        return float(row["epoch"])
    clean, robust = row["val_clean"], row["val_robust"]
    by: dict[str, float] = {"sum": clean + robust, "robust": robust, "clean": clean}
    if select not in by:
        raise ValueError(f"select={select!r} is not one of {', '.join(by)}")
    return by[select]


def best_epoch(rows: Sequence[Mapping[str, Any]], select: Select) -> int:
    """The number, from 1, of the epoch whose weights a run with these rows, in their order, has kept as its best."""
    if not rows:
        raise ValueError("no row: the run has not finished an epoch")
    return int(max(rows, key=lambda row: score(row, select))["epoch"])
