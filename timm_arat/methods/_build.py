"""From the settings of a method to the method."""

from typing import Any

from torch import nn

from ._base import Method
from .arat import ARAT
from .configs import ARATConfig, MadryConfig, StandardConfig
from .madry import Madry
from .standard import Standard

_METHODS: dict[type, type[Method]] = {ARATConfig: ARAT, MadryConfig: Madry, StandardConfig: Standard}


def build(model: nn.Module, config: Any) -> Method:
    """The method around `model` that `config`, one of `configs`, describes."""
    return _METHODS[type(config)](model, config)  # type: ignore[call-arg]  # each takes its own settings
