"""The best and the last weights of a run, as safetensors that are never half written."""

import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn


def save(model: nn.Module, path: Path) -> None:
    """Write the state dict of `model`, both branches, to `path`, replacing it in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.rename(path)


def load(model: nn.Module, path: Path) -> None:
    """Read what `save` wrote into `model`, strictly."""
    model.load_state_dict(load_file(path))
