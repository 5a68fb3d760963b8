"""The best and the last weights of a run, as safetensors that are never half written."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from ..files import write_atomically


def save(model: nn.Module, path: Path) -> None:
    """Write the state dict of `model`, both branches, to `path`, replacing it in one move."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, lambda aside: save_file(state, aside))


def load(model: nn.Module, path: Path) -> None:
    """Read what `save` wrote into `model`, strictly."""
    model.load_state_dict(load_file(path))
