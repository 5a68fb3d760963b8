"""Train a timm backbone robustly: `accelerate launch recipes/train.py`, or `accelerate launch -m timm_arat.train`."""

import sys

from .config import cli, is_main_process, read


@cli
def main() -> None:
    """Read the configuration, train, and print what came out as a table."""
    from .engine.config import BELONGINGS, VARIANTS, TrainConfig

    config = read(
        TrainConfig,
        variants=VARIANTS,
        belongings=BELONGINGS,
        default="digits",
        default_is_of="data.name",
        prog="accelerate launch recipes/train.py",
        description="Train a timm backbone robustly, evaluate it and export it as a plain timm model.",
    )
    from .engine.loop import Interrupted
    from .engine.train import train
    from .evaluation import table

    try:
        results = train(config)
    except Interrupted as stop:
        if is_main_process():
            print(f"stopped; the same command with `--output {stop} --resume true` goes on from there", flush=True)
        sys.exit(130)
    if is_main_process():
        print(f"\n{table(*results)}", flush=True)


if __name__ == "__main__":
    # Launched by `-m`, this module is named __main__; the package's own copy is the one to run.
    from timm_arat.train import main as run

    run()
