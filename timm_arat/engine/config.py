"""The configuration of a training run: what a recipe's YAML holds."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..data import DataConfig
from ..methods import CONFIGS, ARATConfig


@dataclass(frozen=True)
class ModelConfig:
    """The backbone, any model that timm knows.

    Attributes:
        name: Name of a timm model, `resnet20_cifar` for example, or `hf-hub:...`, `local-dir:...`.
        pretrained: Start from timm's pretrained weights; their mean and std are honoured, attacks stay in pixels.
        kwargs: Further arguments of `timm.create_model`.
        sync_norm: Synchronise BatchNorm statistics over processes.
        checkpointing: Recompute activations in the backward pass, to save memory.
        freeze_norms: Keep the BatchNorms of one branch or of both as the pretrained weights have them: affine
            parameters and statistics.
    """

    name: str = "resnet20_cifar"
    pretrained: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)
    sync_norm: bool = False
    checkpointing: bool = False
    freeze_norms: Literal["none", "main", "aux", "both"] = "none"


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule, by timm's names.

    Attributes:
        name: Name for `timm.optim.create_optimizer_v2`.
        lr: Peak learning rate for the global batch.
        momentum: Momentum of sgd and its relatives.
        weight_decay: Weight decay.
        decay_all: Decay biases and norm parameters too (as the official ARAT code).
        kwargs: Further arguments of the optimizer.
        clip_grad: Clip the norm of the gradient to this.
        accumulate: Batches whose gradients are averaged into one step.
        schedule: Name for `timm.scheduler.create_scheduler_v2`: cosine, step, multistep, poly, tanh ...
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate at the start of the warm-up.
        min_lr: Learning rate at the end.
        milestones: Epochs at which `multistep` multiplies by `decay_rate`.
        decay_rate: Factor of step and multistep.
        by_step: Adapt the rate at every step instead of every epoch.
    """

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_all: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)
    clip_grad: float | None = None
    accumulate: int = 1
    schedule: str = "cosine"
    warmup_epochs: int = 0
    warmup_lr: float = 1e-4
    min_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    decay_rate: float = 0.1
    by_step: bool = True

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} is not above 0")
        if self.accumulate < 1:
            raise ValueError(f"accumulate={self.accumulate} is not at least 1")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad={self.clip_grad} is not above 0; leave it out not to clip")


@dataclass(frozen=True)
class AverageConfig:
    """A running average of the weights, evaluated and exported in their place.

    Attributes:
        kind: none; ema, exponential (timm's ModelEmaV3); swa, the equal-weight mean of the last epochs (torch's).
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


@dataclass(frozen=True)
class GuardConfig:
    """A watch over single-step training, which at times loses all robustness but to its own step (arXiv:2006.03089).

    Attributes:
        every: Optimizer steps between two measurements; 0: off.
        steps: PGD steps of the measurement and of the attack that trains during a recovery.
        images: Training images, as they are, on which accuracy under the training attack's norm and eps is measured.
        tolerance: A measurement of at least 1 - tolerance times the best so far is worth going back to.
        drop: One below `drop` times the best, and by 0.1 at least, is a collapse: back to the newest weights worth it.
        recover: Optimizer steps that train with the `steps`-step attack after the first collapse; after each further
            one twice as many, without a bound.
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
class EvaluationConfig:
    """What is measured after each epoch on the held-out images, and at the end, once, on the test set.

    Attributes:
        norm: Threat model.
        eps: Its bound in pixels of [0, 1]; 8/255 for linf if not given.
        val_steps: PGD steps of the validation after each epoch.
        val_images: Validate on this many of the held-out images; all if not given.
        select: What the best checkpoint is best at: the sum of clean accuracy and accuracy under the validation attack
            (the paper's measure), or one of the two.
        attacks: What is measured on the test set.
        autoattack_images: AutoAttack on this many test images, seeded and stratified; all if not given.
        pgd_images: Clean accuracy and PGD-20 on this many test images; all if not given.
        fast: Fold BatchNorms away on the test set, equal up to rounding; off, AutoAttack is bitwise the official one.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: float | None = None
    val_steps: int = 10
    val_images: int | None = None
    select: Literal["sum", "robust", "clean"] = "sum"
    attacks: tuple[Literal["clean", "pgd", "autoattack"], ...] = ("clean", "pgd", "autoattack")
    autoattack_images: int | None = 1000
    pgd_images: int | None = None
    fast: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """Robust training of a timm backbone.

    Attributes:
        data: Data set, splits, augmentation.
        model: Backbone.
        method: Training method; `method.name` is one of arat, madry, standard, trades.
        optimizer: Optimizer and schedule.
        average: Average of the weights.
        guard: Watch over single-step training.
        evaluation: Validation and the final test.
        twin: A second method, trained in turn on the same data and backbone for comparison; `twin.name`, or null.
        epochs: Passes over the training images.
        seed: Of everything random.
        output: The run's folder; runs/DATE-TIME-METHOD-MODEL if not given.
        resume: Go on from the newest checkpoint in `output`.
        mixed_precision: no, bf16 or fp16; auto is what `accelerate launch` was told, or else, also where that is its
            default no, bf16 where the device has it in hardware. Evaluation is in float32 in any case.
        compile: Compile the backbone for attacks, and for training passes that ask for no features on the way: off; on;
            auto, in runs of at least 10,000 steps. Without a C++ compiler it runs as it is, and says so.
        threads: CPU threads a process; cores / local processes if not given, when training runs on the CPU.
        warm_start: Start the attack of an image from the perturbation that it had an epoch before instead of at random
            (ATTA, arXiv:1912.11969), so that one or two steps do. A twin that does not attack trains without.
        balance_images: Training images on which auto-balance measures clean accuracy: as they are, or augmented as in
            the official code.
        checkpoint_minutes: Minutes between checkpoints within an epoch; there is one after every epoch.
        keep_checkpoints: Newest checkpoints to keep.
        log_every: Steps between two updates of the log and the trackers.
        trackers: Experiment trackers of accelerate by name: tensorboard, wandb, trackio ...
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Any = field(default_factory=ARATConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    twin: Any = None
    epochs: int = 30
    seed: int = 0
    output: str | None = None
    resume: bool = False
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: Literal["off", "auto", "on"] = "off"
    threads: int | None = None
    warm_start: bool = False
    balance_images: Literal["plain", "augmented"] = "plain"
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 2
    log_every: int = 20
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads} is not at least 1; leave it out for cores / local processes")
        if self.guard.every:
            for name in ("method", "twin"):
                self._check_guarded(name, getattr(self, name))

    def _check_guarded(self, name: str, method: Any) -> None:
        if method is None:
            return
        if not hasattr(method, "attack"):
            raise ValueError(
                f"guard.every={self.guard.every}: {name}.name={method_name(method)} has no attack to guard; leave the "
                "guard or that method out"
            )
        if self.guard.steps < method.attack.steps:
            raise ValueError(
                f"guard.steps={self.guard.steps} is below {name}.attack.steps={method.attack.steps}: the guard would "
                "measure and recover with less than what is trained on"
            )


# What `method.name` and `twin.name` may be in a recipe.
VARIANTS = {"method": CONFIGS, "twin": CONFIGS}


def method_name(config: Any) -> str:
    """The name in a recipe of the method whose configuration this is."""
    return next(name for name, kind in CONFIGS.items() if type(config) is kind)
