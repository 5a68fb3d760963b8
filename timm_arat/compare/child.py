"""The process of one run of a comparison: `python -m timm_arat.compare.child --config FILE --output RUN`."""

import sys

from ..config import cli, read


@cli
def main() -> None:
    """Train as `timm_arat.train` does, and note what it costs."""
    from ..engine.config import TrainConfig
    from ..engine.recipe import BELONGINGS, VARIANTS

    config = read(TrainConfig, variants=VARIANTS, belongings=BELONGINGS, prog="compare.child", description="One run.")
    from ..engine.loop import Interrupted
    from ..engine.train import train
    from .cost import Cost

    try:
        train(config, companions=[Cost])
    except Interrupted:
        sys.exit(130)


if __name__ == "__main__":
    main()
