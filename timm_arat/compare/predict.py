"""Passes an image and hours of each row, measured on a few steps: `python -m timm_arat.compare.predict FILE ...`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from ..config import cli
from ..data import Data
from ..engine.config import TrainConfig
from ..engine.forecast import forecast
from ..engine.model import build_model
from ..files import write_text
from .config import Run, read_comparison, runs_of
from .prediction import FILE, Prediction, digest, load, threads_of


@cli
def main() -> None:
    """Measure each row that has no prediction yet, and write all into the comparison's folder."""
    comparison = read_comparison(sys.argv[1:])
    folder = Path(comparison.output)
    known, found = load(folder), {}
    data: Data | None = None
    for run in (each for each in runs_of(comparison) if each.seed == comparison.seeds[0]):
        threads = threads_of(run.config, comparison.jobs)
        of = digest(_stand_alone(run), threads)
        if run.row in known and known[run.row].of == of:
            found[run.row] = known[run.row]
            continue
        config = replace(_stand_alone(run), threads=threads)
        data = data or build_model(config)[1]  # one for all rows: it belongs to the protocol
        found[run.row] = Prediction(forecast(config, data), of)
        _save(found, folder)
    _save(found, folder)


def _stand_alone(run: Run) -> TrainConfig:
    """The run with an untrained network in the place of a teacher that another row has yet to train."""
    return replace(run.config, teacher=replace(run.config.model, pretrained=False)) if run.after else run.config


def _save(found: Mapping[str, Prediction], folder: Path) -> None:
    text = json.dumps({name: asdict(each) for name, each in found.items()}, indent=1)
    write_text(folder / FILE, text)


if __name__ == "__main__":
    main()
