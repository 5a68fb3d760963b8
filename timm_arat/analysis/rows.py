"""The rows of RUN/analysis.jsonl: one a measurement, `kind` conflict (a training step) or epoch (after an epoch)."""

from pathlib import Path
from typing import Any

from ..files import read_rows

FILE = "analysis.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The rows in the order of training, the newest where a resume repeated one; empty if there is no such file.

    Raises:
        ValueError: another line than the last is no such row; it names file and line.
    """
    return read_rows(path, ("step", "kind")) if path.is_file() else []
