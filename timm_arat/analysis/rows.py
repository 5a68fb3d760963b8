"""The rows of RUN/analysis.jsonl: one a measurement, `kind` conflict (a training step) or epoch (after an epoch)."""

import json
from pathlib import Path
from typing import Any

FILE = "analysis.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The rows in the order of training, the newest where a resume repeated one; empty if there is no such file.

    A last line that a crash cut short is left out.

    Raises:
        ValueError: another line is no such row; it names file and line.
    """
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["step"], row["kind"]] = row
        except (ValueError, KeyError, TypeError) as error:
            if line.strip() and number < len(lines):
                raise ValueError(
                    f"{path}, line {number}: wanted a JSON object with step and kind, got {line[:60]!r}: remove it"
                ) from error
    return [rows[key] for key in sorted(rows)]
