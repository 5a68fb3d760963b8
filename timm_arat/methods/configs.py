"""The table of training methods: a row is a method's settings, its name in a recipe, and its class.

Settings are free of torch, so that a command line is answered at once; the classes are imported when they are needed.
The attack is no setting of a method: a recipe has one threat, `attack`, at its top.
"""

from dataclasses import dataclass
from typing import Literal

from ._table import CONFIGS as CONFIGS
from ._table import check_at_least_0, check_choice, check_label_smoothing, row


@row("standard", "Standard")
@dataclass(frozen=True)
class StandardConfig:
    """Plain training with cross-entropy on clean images.

    Attributes:
        label_smoothing: Share of the label spread over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_label_smoothing(self)


@row("madry", "Madry")
@dataclass(frozen=True)
class MadryConfig:
    """PGD adversarial training: cross-entropy on adversarial images only.

    Attributes:
        label_smoothing: Share of the label spread over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_label_smoothing(self)


@row("trades", "TRADES")
@dataclass(frozen=True)
class TRADESConfig:
    """TRADES: cross-entropy on clean images, and a pull that holds the prediction still within the ball.

    Attributes:
        beta: Weight of the divergence of the predictions (1/lambda of the paper; the authors' code: 6).
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        check_at_least_0(self, "beta")


@row("mart", "MART")
@dataclass(frozen=True)
class MARTConfig:
    """MART: adversarial cross-entropy with a margin, and a pull that is strong where a clean image is not recognised.

    Attributes:
        weight: Weight lambda of that pull (the authors' code: 5 for ResNet-18, 6 for WRN-34-10).
    """

    weight: float = 5.0

    def __post_init__(self) -> None:
        check_at_least_0(self, "weight")


@row("lbgat", "LBGAT")
@dataclass(frozen=True)
class LBGATConfig:
    """LBGAT: adversarial logits pulled to a clean teacher's, which is trained along; the recipe names it in `teacher`.

    Attributes:
        beta: Weight of the divergence of the predictions (published: 0, of high clean accuracy, and 6).
        detach: The teacher's logits stand still in the pull; the authors' do not.
        split_norm: Norms with a second, auxiliary set for the clean pass of the trained network. batch: BatchNorm.
            all: the affine parameters of LayerNorm, GroupNorm and RMSNorm too. none: as the authors.
        clean_pass: At beta 0, pass clean images through the trained network as the authors do: nothing is learnt from
            them, but they go into the running statistics. Off, these are of adversarial images only, and a pass is
            saved.
    """

    beta: float = 0.0
    detach: bool = False
    split_norm: Literal["batch", "all", "none"] = "none"
    clean_pass: bool = True

    def __post_init__(self) -> None:
        check_at_least_0(self, "beta")
        check_choice(self, split_norm=("batch", "all", "none"))
        if self.beta and not self.clean_pass:
            raise ValueError(f"clean_pass=False with beta={self.beta}: the divergence needs the clean pass; beta=0 not")
        if self.split_norm != "none" and not self.beta:
            raise ValueError(
                f"split_norm={self.split_norm!r} with beta=0: nothing would train the auxiliary norms, and the main "
                "ones would be those of clean_pass=False, which says the same for less"
            )


@row("hat", "HAT")
@dataclass(frozen=True)
class HATConfig:
    """HAT: TRADES, and images beyond the ball with the label of a standard network; the recipe names it in `teacher`.

    Attributes:
        beta: Weight of the divergence of the predictions (the authors' code: 2.5 for CIFAR-10 and ResNet-18).
        gamma: Weight of the cross-entropy of the images beyond the ball (0.5).
        h: How many times as far as the adversarial image they are from the clean one (2).
    """

    beta: float = 2.5
    gamma: float = 0.5
    h: float = 2.0

    def __post_init__(self) -> None:
        check_at_least_0(self, "beta", "gamma", "h")


@row("dajat", "DAJAT")
@dataclass(frozen=True)
class DAJATConfig:
    """DAJAT: TRADES on the images and on AutoAugment's views of them, which have norms of their own.

    Attributes:
        views: AutoAugment's views besides the images themselves (the authors: 2); 0 is ACAT.
        beta: Weight of the divergence of the predictions (CIFAR-10: 11 for ResNet-18, 10 for WRN-34-10).
        weight_js: Weight of the Jensen-Shannon divergence of the views' clean predictions (2, and 3).
        label_smoothing: Share of the label spread over all classes, in [0, 1) (0.1 for CIFAR-100).
        split_norm: Norms with a second, auxiliary set for AutoAugment's views. batch: BatchNorm. all: the affine
            parameters of LayerNorm, GroupNorm and RMSNorm too. none: all views share the norms.
        policy: The policy of AutoAugment, by the data set that it was found on.
    """

    views: int = 2
    beta: float = 11.0
    weight_js: float = 2.0
    label_smoothing: float = 0.0
    split_norm: Literal["batch", "all", "none"] = "batch"
    policy: Literal["cifar10", "imagenet", "svhn"] = "cifar10"

    def __post_init__(self) -> None:
        check_at_least_0(self, "views", "beta", "weight_js")
        check_label_smoothing(self)
        check_choice(self, split_norm=("batch", "all", "none"), policy=("cifar10", "imagenet", "svhn"))


@row("arrest", "ARREST")
@dataclass(frozen=True)
class ARRESTConfig:
    """ARREST-style: adversarial training that stays near a standard network; the recipe names it in `teacher`.

    The paper's constants are not published; these are ours.

    Attributes:
        weight: Weight of the angle between the representations, as a share of pi.
        threshold: Share of pi above which an adversarial image is replaced by a noisy one.
        noise: Half the width of the uniform noise of that image, in pixels of [0, 1].
        from_teacher: Start from the teacher's weights.
    """

    weight: float = 10.0
    threshold: float = 0.4
    noise: float = 8 / 255
    from_teacher: bool = True

    def __post_init__(self) -> None:
        check_at_least_0(self, "weight", "threshold")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise={self.noise} is not in [0, 1): images are in [0, 1], write 8/255 rather than 8")


@row("advprop", "AdvProp")
@dataclass(frozen=True)
class AdvPropConfig:
    """AdvProp: clean images by the main norms, which are deployed, and adversarial ones by norms of their own.

    Attributes:
        label_smoothing: Share of the label spread over all classes, in [0, 1).
        split_norm: Norms with a second, auxiliary set for adversarial images. batch: BatchNorm. all: the affine
            parameters of LayerNorm, GroupNorm and RMSNorm too.
    """

    label_smoothing: float = 0.0
    split_norm: Literal["batch", "all"] = "batch"

    def __post_init__(self) -> None:
        check_label_smoothing(self)
        check_choice(self, split_norm=("batch", "all"))


@row("arat", "ARAT")
@dataclass(frozen=True)
class ARATConfig:
    """ARAT: adversarial and clean cross-entropy, and a stop-gradient pull of adversarial towards clean features.

    Attributes:
        weight: Weight gamma of the invariance term (official: 30 for ResNet-18, 100 for WRN-34-10).
        anchor: Which features stand still in the invariance term. clean: the paper's stop-gradient. adversarial: the
            reverse, which the paper shows to hurt. both: the mean of the two halves. none: the naive symmetric term.
            teacher: those of a second network for clean images, which is only used; the recipe names it in `teacher`.
        predictor: Whose features pass through the predictor. adversarial: the paper's.
        split_norm: Norms with a second, auxiliary set for clean images. batch: BatchNorm. all: the affine parameters of
            LayerNorm, GroupNorm and RMSNorm too. none: both kinds of image share the norms. affine, statistics: only
            this half of each BatchNorm is split, and the other is shared (ablations).
        layers: Layers of the invariance term, names for `timm_arat.taps.tap`; empty for the last stage, ['paper'] for
            those of the official code.
        auto_balance: Weigh the adversarial cross-entropy by the clean training accuracy a before the epoch and the
            clean one by 1 - a; off, both weigh 1.
        noisy_clean: Reproduce the official code's aliasing bug: the clean image is shifted by the start noise of
            the attack, whose ball is centred there and which starts at zero.
    """

    weight: float = 30.0
    anchor: Literal["clean", "adversarial", "both", "none", "teacher"] = "clean"
    predictor: Literal["adversarial", "clean", "none"] = "adversarial"
    split_norm: Literal["batch", "all", "none", "affine", "statistics"] = "batch"
    layers: tuple[str, ...] = ()
    auto_balance: bool = True
    noisy_clean: bool = False

    def __post_init__(self) -> None:
        check_at_least_0(self, "weight")
        check_choice(
            self,
            anchor=("clean", "adversarial", "both", "none", "teacher"),
            predictor=("adversarial", "clean", "none"),
            split_norm=("batch", "all", "none", "affine", "statistics"),
        )
        if (self.anchor, self.predictor) in (("clean", "clean"), ("adversarial", "adversarial"), ("teacher", "clean")):
            raise ValueError(
                f"anchor={self.anchor!r} with predictor={self.predictor!r}: the anchor has no gradient, so its "
                f"predictor would never learn; put the predictor on the other side or write predictor='none'"
            )
        if self.anchor == "teacher" and self.layers:
            raise ValueError("anchor='teacher' compares last stages: leave layers out")
