"""`recipes/diagnose.py RUN_OR_MODEL ...`: the ARAT paper's analyses of trained weights, as JSON, table and figures."""

import json
import sys
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from timm_arat.config import cli, read
from timm_arat.data import DataConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Analyse runs or models.

    Attributes:
        models: Runs' folders, or what timm.create_model takes (a name, hf-hub:ORG/NAME, local-dir:PATH).
        data: The images; a run or a published checkpoint knows its own.
        images: Test images, stratified, whose features are taken.
        batches: Training batches on which a run's gradients are compared; 0: none.
        steps: PGD steps on the test images.
        layers: Layers of the features, see `taps`; those of the run's method, or the last stage, if not given.
        official: Compare the two losses of the official code, the weighted cross-entropies and the rest.
        seed: Of the choice of images and of the attacks.
        output: The folder of the figures and of analysis.md; the run's own, or analysis/ here where there are several.
        figures: Draw them; needs matplotlib.
        device: Such as cuda or cpu; cuda if there is one.
    """

    models: tuple[str, ...]
    data: DataConfig = field(default_factory=lambda: DataConfig(name=""))
    images: int = 1000
    batches: int = 10
    steps: int = 20
    layers: tuple[str, ...] = ()
    official: bool = False
    seed: int = 0
    output: str | None = None
    figures: bool = True
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: name a run's folder or a model")
        for name, least in (("images", 1), ("batches", 0), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is not at least {least}")


@cli
def main() -> None:
    """The command line."""
    words = sys.argv[1:]
    bare = list(takewhile(lambda word: not word.startswith("-"), words))
    options = read(
        Options,
        [*(["--models", json.dumps(bare)] if bare else []), *words[len(bare) :]],
        variants={},
        prog="diagnose.py",
        description="Conflict of gradients, mixture distribution and invariance, as in the ARAT paper.",
    )
    if not options.data.name and options.data != DataConfig(name=""):
        raise ValueError("data: a run is measured on its own data; give --data.name, too, for others")
    from timm_arat.analysis import figures, rows, table
    from timm_arat.engine.diagnosis import diagnose
    from timm_arat.evaluation._place import beside
    from timm_arat.files import write_text

    found, along = {}, {}
    for model in options.models:
        found[model] = report = diagnose(
            model, data=options.data if options.data.name else None, images=options.images, batches=options.batches,
            steps=options.steps, layers=options.layers, official=options.official, seed=options.seed,
            device=options.device,
        )  # fmt: skip
        path = beside(model, "analysis.json")
        write_text(path, json.dumps(report, indent=1) + "\n")
        print(f"written to {path}")
        if written := rows.read(Path(model) / rows.FILE):
            along[model] = written
    folder = Path(options.output) if options.output else _folder(options.models)
    folder.mkdir(parents=True, exist_ok=True)
    markdown = table.markdown(found, along)
    several = len(options.models) > 1 or options.output
    page = folder / ("analysis.md" if several else beside(options.models[0], "analysis.md").name)
    write_text(page, markdown)
    print(f"\n{markdown}\nwritten to {page}")
    if options.figures:
        for path in figures.draw(along, folder):
            print(f"drawn to {path}")
        if not along:
            print("no figures: they show a training; train with --analysis.every 100 for the rows that they are of")


def _folder(models: tuple[str, ...]) -> Path:
    if len(models) > 1:
        return Path("analysis")
    from timm_arat.evaluation._place import beside

    return beside(models[0], "analysis.md").parent
