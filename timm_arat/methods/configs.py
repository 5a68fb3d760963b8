"""The table of training methods: a row is a method's settings, its name in a recipe, and its class.

Settings are free of torch, so that a command line is answered at once; the classes are imported when they are needed.
The attack is no setting of a method: a recipe has one threat, `attack`, at its top.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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


@row("standard", "Standard")
@dataclass(frozen=True)
class StandardConfig:
    """Plain training with cross-entropy on clean images.

    Attributes:
        label_smoothing: Share of the label spread over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0


@row("madry", "Madry")
@dataclass(frozen=True)
class MadryConfig:
    """PGD adversarial training: cross-entropy on adversarial images only.

    Attributes:
        label_smoothing: Share of the label spread over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0


@row("trades", "TRADES")
@dataclass(frozen=True)
class TRADESConfig:
    """TRADES: cross-entropy on clean images, and a pull that holds the prediction still within the ball.

    Attributes:
        beta: Weight of the divergence of the predictions (1/lambda of the paper; the authors' code: 6).
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta={self.beta} is not at least 0")


@row("mart", "MART")
@dataclass(frozen=True)
class MARTConfig:
    """MART: adversarial cross-entropy with a margin, and a pull that is strong where a clean image is not recognised.

    Attributes:
        weight: Weight lambda of that pull (the authors' code: 5 for ResNet-18, 6 for WRN-34-10).
    """

    weight: float = 5.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight={self.weight} is not at least 0")


@row("arat", "ARAT")
@dataclass(frozen=True)
class ARATConfig:
    """ARAT: adversarial and clean cross-entropy, and a stop-gradient pull of adversarial towards clean features.

    Attributes:
        weight: Weight gamma of the invariance term (official: 30 for ResNet-18, 100 for WRN-34-10).
        anchor: Which features stand still in the invariance term. clean: the paper's stop-gradient. adversarial: the
            reverse, which the paper shows to hurt. both: the mean of the two halves. none: the naive symmetric term.
        predictor: Whose features pass through the predictor. adversarial: the paper's.
        split_norm: Norms with a second, auxiliary set for clean images. batch: BatchNorm. all: the affine parameters of
            LayerNorm, GroupNorm and RMSNorm too. none: both kinds of image share the norms.
        layers: Layers of the invariance term, names for `timm_arat.taps.tap`; empty for the last stage, ['paper'] for
            those of the official code.
        auto_balance: Weigh the adversarial cross-entropy by the clean training accuracy a before the epoch and the
            clean one by 1 - a; off, both weigh 1.
        noisy_clean: Reproduce the official code's aliasing bug: the clean image is shifted by the start noise of
            the attack, whose ball is centred there and which starts at zero.
    """

    weight: float = 30.0
    anchor: Literal["clean", "adversarial", "both", "none"] = "clean"
    predictor: Literal["adversarial", "clean", "none"] = "adversarial"
    split_norm: Literal["batch", "all", "none"] = "batch"
    layers: tuple[str, ...] = ()
    auto_balance: bool = True
    noisy_clean: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} is not at least 0")
        check_choice(
            self,
            anchor=("clean", "adversarial", "both", "none"),
            predictor=("adversarial", "clean", "none"),
            split_norm=("batch", "all", "none"),
        )
        if (self.anchor, self.predictor) in (("clean", "clean"), ("adversarial", "adversarial")):
            raise ValueError(
                f"anchor={self.anchor!r} with predictor={self.predictor!r}: the anchor has no gradient, so its "
                f"predictor would never learn; put the predictor on the other side or write predictor='none'"
            )
