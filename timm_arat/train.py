"""Train a timm backbone robustly: `accelerate launch recipes/train.py`, or `accelerate launch -m timm_arat.train`."""

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from .config import cli, is_main_process, read, recipes
from .engine.config import TrainConfig
from .engine.recipe import BELONGINGS, VARIANTS


@dataclass(frozen=True)
class Options(TrainConfig):
    """Robust training of a timm backbone.

    Attributes:
        dry_run: Say what it will cost, passes, hours, memory and disk, by a few steps; train nothing.
    """

    dry_run: bool = False


@cli
def main() -> None:
    """Read the configuration, train, and print what came out as a table; or say what it will cost."""
    options = read(
        Options,
        _resumed(sys.argv[1:]),
        variants=VARIANTS,
        belongings=BELONGINGS,
        default="digits",
        default_is_of="data.name",
        prog="accelerate launch recipes/train.py",
        description="Train a timm backbone robustly, evaluate it and export it as a plain timm model.",
        bundled=recipes(),
    )
    config = TrainConfig(**{each.name: getattr(options, each.name) for each in fields(TrainConfig)})
    if is_main_process():
        print(f"training {config.model.name} on {config.data.name}: loading torch and timm", flush=True)
    from .engine.loop import Interrupted
    from .engine.train import both, train
    from .evaluation import table

    if options.dry_run:
        from .engine.forecast import forecast

        runs = dict(zip(("", "its twin:\n"), both(config), strict=False))
        for title, run in runs.items():
            lines = forecast(run).lines(int(os.environ.get("WORLD_SIZE", 1)))
            if is_main_process():
                print(title + "\n".join(lines), flush=True)
        return
    try:
        results = train(config)
    except Interrupted as stop:
        if is_main_process():
            way = f"`accelerate launch recipes/train.py --resume {stop}` goes on from there"
            print(f"stopped; {way}" if str(stop) else "stopped before there was a checkpoint to go on from", flush=True)
        sys.exit(130)
    if is_main_process():
        print(f"\n{table(*results)}", flush=True)


def _resumed(words: list[str]) -> list[str]:
    """`--resume RUN` means the recipe in that folder, its output and what it has of checkpoints."""
    for place, word in enumerate(words):
        option, _, run = word.partition("=")
        run = run or next(iter(words[place + 1 : place + 2]), "")
        if option == "--resume" and run not in ("", "true", "false") and not run.startswith("--"):
            recipe = Path(run) / "config.yaml"
            if not recipe.is_file():
                raise ValueError(f"--resume {run}: there is no {recipe}, so no run to go on with")
            rest = words[:place] + words[place + (1 if "=" in word else 2) :]
            return ["--config", str(recipe), "--output", run, "--resume", "true", *rest]
    return words


if __name__ == "__main__":
    # Launched by `-m`, this module is named __main__; the package's own copy is the one to run.
    from timm_arat.train import main as run

    run()
