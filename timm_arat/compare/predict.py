"""Passes an image and hours of each row, measured on a few steps: `python -m timm_arat.compare.predict FILE ...`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from ..config import cli
from ..data import Data
from ..engine.config import ModelConfig, TrainConfig
from ..engine.forecast import forecast
from ..engine.model import build_model
from ..files import write_text
from .config import Run, protocol_of, read_comparison, runs_of
from .prediction import FILE, Prediction, digest, load, threads_of


@cli
def main() -> None:
    """Measure each row that has no prediction yet, and write all into the comparison's folder."""
    comparison = read_comparison(sys.argv[1:])
    folder = Path(comparison.output)
    known, found = load(folder), {}
    data: Data | None = None
    untrained = replace(protocol_of(comparison).model, pretrained=False)
    for run in (each for each in runs_of(comparison) if each.seed == comparison.seeds[0]):
        threads = threads_of(run.config, comparison.jobs)
        alone = _stand_alone(run, untrained)
        of = digest(alone, threads)
        if run.row in known and known[run.row].of == of:
            found[run.row] = known[run.row]
            continue
        config = replace(alone, threads=threads)
        data = data or build_model(config)[1]  # one for all rows: it belongs to the protocol
        try:
            found[run.row] = Prediction(forecast(config, data), of)
        except ValueError as error:
            raise ValueError(f"{comparison.file}: rows.{run.row}: {error}") from error
        _save(found, folder)
    _save(found, folder)


def _stand_alone(run: Run, untrained: ModelConfig) -> TrainConfig:
    """The run with an untrained network in the place of each that another row has yet to train."""
    folders = {run.folder.with_name(name) for name in run.after}
    config = run.config
    if Path(config.model.name) in folders:
        config = replace(config, model=untrained)
    if Path(config.teacher.name) in folders:
        config = replace(config, teacher=untrained)
    return config


def _save(found: Mapping[str, Prediction], folder: Path) -> None:
    text = json.dumps({name: asdict(each) for name, each in found.items()}, indent=1)
    write_text(folder / FILE, text)


if __name__ == "__main__":
    main()
