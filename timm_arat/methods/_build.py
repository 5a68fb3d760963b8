"""From the settings of a method to the method."""

from typing import Any

from torch import nn

from ._base import Method
from .arat import ARAT
from .configs import ARATConfig, MadryConfig, StandardConfig, TRADESConfig
from .madry import Madry
from .standard import Standard
from .trades import TRADES

_METHODS: dict[type, type[Method]] = {
    ARATConfig: ARAT,
    MadryConfig: Madry,
    StandardConfig: Standard,
    TRADESConfig: TRADES,
}


def build(model: nn.Module, config: Any) -> Method:
    """The method around `model` that `config`, one of `configs`, describes."""
    return _METHODS[type(config)](model, config)
