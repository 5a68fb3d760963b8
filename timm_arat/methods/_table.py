"""How settings are entered in the table of training methods, and what is found there; the rows are in `configs`."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._base import Method

# Settings by the name of `method.name` in a recipe, and the names of the classes by that of the settings' class.
CONFIGS: dict[str, type] = {}
CLASSES: dict[str, str] = {}


def row(name: str, cls: str) -> Callable[[type], type]:
    """Enter the decorated settings as those of the method `name`, the class `cls` in the file `name`.py."""

    def enter(config: type) -> type:
        CONFIGS[name], CLASSES[name] = config, cls
        return config

    return enter


def method_name(config: Any) -> str:
    """The name in a recipe of the method whose settings these are."""
    return next(name for name, kind in CONFIGS.items() if type(config) is kind)


def method_class(name: str) -> "type[Method]":
    """The class of the method that a recipe calls `name`."""
    found: type[Method] = getattr(importlib.import_module(f"{__package__}.{name}"), CLASSES[name])
    return found


def check_choice(config: Any, **allowed: tuple[str, ...]) -> None:
    """ValueError unless each named setting is one of those allowed."""
    for name, wanted in allowed.items():
        if getattr(config, name) not in wanted:
            raise ValueError(f"{name}={getattr(config, name)!r} is not one of {', '.join(wanted)}")


def check_at_least_0(config: Any, *names: str) -> None:
    """ValueError unless each named setting is a number, at least 0."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}={getattr(config, name)} is not at least 0")


def check_label_smoothing(config: Any) -> None:
    """ValueError unless the share of the label that is spread leaves some of it."""
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"label_smoothing={config.label_smoothing} is not in [0, 1)")
