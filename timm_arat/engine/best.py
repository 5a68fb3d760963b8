"""Which epoch of a run is its best one."""

from typing import Any, Literal

Row = dict[str, Any]
Select = Literal["sum", "robust", "clean"]


def score(row: Row, select: Select) -> float:
    """What the best epoch has most of, from its row of summary.jsonl; without validation, the newest is the best."""
    if "val_robust" not in row:
        return float(row["epoch"])
    clean, robust = row["val_clean"], row["val_robust"]
    return float({"robust": robust, "clean": clean, "sum": clean + robust}[select])


def best(rows: list[Row], select: Select) -> Row:
    """The row of the best epoch, the first of equals; `rows` has at least one."""
    return max(rows, key=lambda row: score(row, select))
