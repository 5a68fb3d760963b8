"""The settings of every training method, free of torch, so that a command line is answered at once."""

from dataclasses import dataclass, field
from typing import Literal

from ..attacks import PGD


@dataclass(frozen=True)
class StandardConfig:
    """Plain training with cross-entropy on clean images.

    Attributes:
        label_smoothing: Share of the label spread over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0


@dataclass(frozen=True)
class MadryConfig:
    """PGD adversarial training: cross-entropy on adversarial images only.

    Attributes:
        attack: The attack on the training images.
        label_smoothing: Share of the label spread over all classes, in [0, 1).
    """

    attack: PGD = field(default_factory=PGD)
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class ARATConfig:
    """ARAT: adversarial and clean cross-entropy, and a stop-gradient pull of adversarial towards clean features.

    Attributes:
        attack: The attack on the training images; it sees the main branch.
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

    attack: PGD = field(default_factory=PGD)
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
        for name, wanted in _CHOICES.items():
            if getattr(self, name) not in wanted:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(wanted)}")
        if (self.anchor, self.predictor) in (("clean", "clean"), ("adversarial", "adversarial")):
            raise ValueError(
                f"anchor={self.anchor!r} with predictor={self.predictor!r}: the anchor has no gradient, so its "
                f"predictor would never learn; put the predictor on the other side or write predictor='none'"
            )
        if self.noisy_clean and (self.attack.norm, self.attack.loss) != ("linf", "ce"):
            raise ValueError(
                f"noisy_clean reproduces a bug of the official attack: it needs norm='linf' and loss='ce', not "
                f"norm={self.attack.norm!r} and loss={self.attack.loss!r}"
            )


_CHOICES = {
    "anchor": ("clean", "adversarial", "both", "none"),
    "predictor": ("adversarial", "clean", "none"),
    "split_norm": ("batch", "all", "none"),
}


@dataclass(frozen=True)
class TRADESConfig:
    """TRADES: cross-entropy on clean images, and a pull that holds the prediction still within the ball.

    Attributes:
        attack: The attack on the training images. The method's own climbs the divergence of the predictions; one that
            is given in Python says so itself, by loss='kl', or climbs the cross-entropy.
        beta: Weight of that divergence (1/lambda of the paper; the authors' code: 6).
    """

    attack: PGD = field(default_factory=lambda: PGD(loss="kl"))
    beta: float = 6.0

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta={self.beta} is not at least 0")


# The names of `method.name` in a recipe; `methods.build` knows their modules.
CONFIGS: dict[str, type] = {
    "arat": ARATConfig,
    "madry": MadryConfig,
    "standard": StandardConfig,
    "trades": TRADESConfig,
}
