"""The best and the last weights of a run, as safetensors that are never half written."""

import errno
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


def save(model: nn.Module, path: Path) -> None:
    """Write the state dict of `model`, both branches, to `path`, replacing it in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    try:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, aside)
    except SafetensorError as error:
        # safetensors has a class of its own for what the disk says.
        full = "No space" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, f"{path} cannot be written: {error}") from error
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.rename(path)


def load(model: nn.Module, path: Path) -> None:
    """Read what `save` wrote into `model`, strictly."""
    model.load_state_dict(load_file(path))
