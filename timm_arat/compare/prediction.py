"""What a run is expected to cost, as it lies in a comparison's folder. Free of torch; `predict` measures it."""

import hashlib
import json
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import dump
from ..engine.config import TrainConfig
from ..engine.costs import Forecast, Passes, cores
from ..engine.recipe import VARIANTS

FILE = "prediction.json"


@dataclass(frozen=True)
class Prediction:
    """What a run of a row is expected to cost here, alone on its share of the cores.

    Attributes:
        forecast: The costs.
        of: What it was measured for, a digest of settings and machine.
    """

    forecast: Forecast
    of: str


def load(folder: Path) -> dict[str, Prediction]:
    """The predictions that lie in a comparison's folder, by row; none where nothing was measured."""
    path = folder / FILE
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text())
    return {name: Prediction(_forecast(row["forecast"]), row["of"]) for name, row in rows.items()}


def _forecast(row: dict[str, Any]) -> Forecast:
    return Forecast(**{**row, "passes": Passes(**row["passes"])})


def digest(config: TrainConfig, threads: int) -> str:
    """Of what a prediction depends on, this machine included."""
    text = dump(replace(config, seed=0, output=None), variants=VARIANTS)
    return hashlib.sha256(f"{text} {threads} {platform.node()} {os.cpu_count()}".encode()).hexdigest()[:16]


def threads_of(config: TrainConfig, jobs: int) -> int:
    """CPU threads of one of `jobs` runs at a time."""
    return config.threads or max(1, cores() // jobs)
