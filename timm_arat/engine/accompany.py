"""The settings of the companions of a run, a section of the recipe each. Free of torch and accelerate."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BalanceConfig:
    """How clean training accuracy is measured before each epoch, for methods that balance their loss by it.

    Attributes:
        images: On training images as they are (plain), or augmented as in the official ARAT code.
        count: Number of training images (the official code: 1,024).
        redraw: Other images before each epoch, at random, as in the official ARAT code; else the same ones throughout,
            stratified by class.
    """

    images: Literal["plain", "augmented"] = "plain"
    count: int = 1024
    redraw: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} is not at least 1")


@dataclass(frozen=True)
class GuardConfig:
    """A watch over single-step training, which at times loses all robustness but to its own step (arXiv:2006.03089).

    Attributes:
        every: Optimizer steps between two measurements; 0: off.
        steps: PGD steps of the measurement, and of the attack that trains after a collapse.
        images: Number of training images on which accuracy under the threat is measured, without augmentation.
        tolerance: Weights are kept to go back to if their accuracy is at least 1 - tolerance times the best so far.
        drop: An accuracy below `drop` times the best so far, and at least 0.1 below it, is a collapse. Then the weights
            that were kept last are put back.
        recover: Optimizer steps that train with `steps` attack steps after the first collapse. After each further
            collapse they are twice as many as after the one before.
    """

    every: int = 0
    steps: int = 10
    images: int = 256
    tolerance: float = 0.1
    drop: float = 0.5
    recover: int = 50

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every={self.every} is not at least 0, which is off")
        for name in ("steps", "images", "recover"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not at least 1")
        if not 0 < self.drop < 1:
            raise ValueError(f"drop={self.drop} is not in (0, 1)")
        if not 0 <= self.tolerance <= 1 - self.drop:
            raise ValueError(
                f"tolerance={self.tolerance} is not in [0, 1 - drop]: weights below drop={self.drop} are not to be kept"
            )


@dataclass(frozen=True)
class AWPConfig:
    """Adversarial weight perturbation (Wu et al., arXiv:2004.05884): each step's gradient is that of worse weights.

    Attributes:
        gamma: Length of the perturbation of each weight, as a share of that weight's own length; 0: off. The authors:
            0.01 for PGD adversarial training, 0.005 for TRADES.
        start_epoch: First epoch, from 0, that perturbs (the authors: 0, and 10 for TRADES).
    """

    gamma: float = 0.0
    start_epoch: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma={self.gamma} is not in [0, 1), a share of each weight's length; 0 is off")
        if self.start_epoch < 0:
            raise ValueError(f"start_epoch={self.start_epoch} is not at least 0")


@dataclass(frozen=True)
class AnalysisConfig:
    """The ARAT paper's analyses along a run of a method that attacks, as rows of analysis.jsonl; see docs/analysis.md.

    Attributes:
        every: Optimizer steps between two comparisons of the terms' gradients; 0: no analysis at all (the official
            code: writes every 100).
        official: Compare the two losses of the official code, the weighted cross-entropies and the rest.
        images: Held-out images (training images where none are held out) whose features are taken after each epoch.
        steps: PGD steps on these, with the training attack's norm and eps.
        layers: Layers of the features, see `taps`; those of the method, or the last stage, if not given.
    """

    every: int = 0
    official: bool = False
    images: int = 256
    steps: int = 20
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every={self.every} is not at least 0, which is off")
        for name in ("images", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not at least 1")


@dataclass(frozen=True)
class AverageConfig:
    """A running average of the weights, evaluated and exported in their place.

    Attributes:
        kind: none; ema, exponential; swa, the equal-weight mean of the last epochs. Both are torch's AveragedModel.
        decay: Decay a step of ema.
        start_epoch: First epoch, from 0, that goes into the average.
        every: Steps between two snapshots of swa.
        batches: Training batches that re-estimate the norms' statistics, both branches, before it is evaluated.
    """

    kind: Literal["none", "ema", "swa"] = "none"
    decay: float = 0.999
    start_epoch: int = 0
    every: int = 500
    batches: int = 100

    def __post_init__(self) -> None:
        if self.kind not in ("none", "ema", "swa"):
            raise ValueError(f"kind={self.kind!r} is not one of none, ema, swa")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} is not in [0, 1)")
        if self.batches < 1 or self.every < 1:
            raise ValueError(f"batches={self.batches} and every={self.every} must be at least 1")
