"""How a recipe is read: what its sections may be, and what goes with a name that another replaces."""

from pathlib import Path

from ..config import read
from ..methods import CONFIGS
from .config import TrainConfig

# What `method.name` and `twin.name` may be in a recipe.
VARIANTS = {"method": CONFIGS, "twin": CONFIGS}
# What a recipe says of its data set or its network goes with that where another one is named. `pretrained` stays:
# without it a fine-tuning or a teacher would begin at random, with it weights that do not exist are an error.
BELONGINGS = {
    "data.name": (
        "data.root", "data.download", "data.train_split", "data.val_split", "data.test_split", "data.num_classes",
        "data.input_key", "data.target_key", "data.image_size", "data.in_chans",
    ),
    "model.name": ("model.kwargs", "model.init", "model.freeze_norms"),
    "attack.norm": ("attack.eps", "attack.step_size"),
    "teacher.name": ("teacher.kwargs",),
    "method.name": ("teacher",),
}  # fmt: skip


def read_recipe(recipe: str | Path, *words: str) -> TrainConfig:
    """The recipe called `recipe`, a name or a YAML file, with options as `words` of a command line over it.

    Raises:
        ValueError: it cannot be found, or a line or word of it cannot be used.
    """
    words = ("--config", str(recipe), *words)
    return read(TrainConfig, words, variants=VARIANTS, belongings=BELONGINGS, prog="", description="")
