"""The configuration of a training run: what a recipe's YAML holds."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..attacks import PGD
from ..data import DataConfig
from ..evaluation import EvaluationConfig
from ..methods import ARATConfig
from .accompany import AnalysisConfig, AverageConfig, AWPConfig, BalanceConfig, GuardConfig


@dataclass(frozen=True)
class ModelConfig:
    """A network, any model that timm knows.

    Attributes:
        name: Name of a timm model, `resnet20_cifar` for example, or `hf-hub:...`, `local-dir:...`, or a run's folder.
        pretrained: Start from timm's pretrained weights; their mean and std are honoured, attacks stay in pixels.
        kwargs: Further arguments of `timm.create_model`.
        init: How weights that are not pretrained begin: as timm begins this model, or torch, each layer as torch itself
            begins it (as the official ARAT code; timm's ResNets begin with residual branches of zero, for example).
        sync_norm: Synchronise BatchNorm statistics over processes, also those of ARAT's predictors; GPUs only.
        checkpointing: Recompute activations in the backward pass, to save memory.
        freeze_norms: Keep the BatchNorms of one branch or of both as the pretrained weights have them: affine
            parameters and statistics.
    """

    name: str = "resnet20_cifar"
    pretrained: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)
    init: Literal["timm", "torch"] = "timm"
    sync_norm: bool = False
    checkpointing: bool = False
    freeze_norms: Literal["none", "main", "aux", "both"] = "none"

    def __post_init__(self) -> None:
        if self.init == "torch" and self.pretrained:
            raise ValueError("init=torch and pretrained=true are two beginnings; leave out one of the two")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule, by timm's names.

    Attributes:
        name: Name for `timm.optim.create_optimizer_v2`; its `sgd` has Nesterov's momentum, `momentum` is torch's plain
            SGD with momentum, which the official ARAT code and most papers mean.
        lr: Peak learning rate for the global batch.
        momentum: Momentum of sgd and its relatives.
        weight_decay: Weight decay.
        decay_all: Decay biases and norm parameters too (as the official ARAT code), and what the model itself names as
            not to decay (position embeddings, class tokens).
        kwargs: Further arguments of the optimizer and of `create_optimizer_v2`: betas, layer_decay ...
        clip_grad: Clip the norm of the gradient to this.
        accumulate: Batches whose gradients are averaged into one step; an epoch's last step averages those left.
        schedule: constant (or none), or a name for `timm.scheduler.create_scheduler_v2`: cosine, tanh, poly, step,
            multistep, wsd ...; plateau follows the validation score, `validation.select`, epoch by epoch.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate at the start of the warm-up.
        warmup_prefix: Begin the schedule behind the warm-up, at its peak; else the warm-up replaces its first epochs.
        min_lr: Learning rate at the end.
        milestones: Epochs at which `multistep` multiplies by `decay_rate`; not `by_step`, timm does so an epoch before.
        decay_epochs: Epochs between two decays of step; length of the decay of wsd and rsqrt, below 1 as a share.
        decay_rate: Factor of step, multistep and plateau; the power of poly.
        patience_epochs: Epochs without a better score after which plateau decays.
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
    warmup_prefix: bool = False
    min_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    decay_epochs: float | None = None
    decay_rate: float = 0.1
    patience_epochs: int = 10
    by_step: bool = True

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} is not above 0")
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} is not at least 0")
        if self.accumulate < 1:
            raise ValueError(f"accumulate={self.accumulate} is not at least 1")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad={self.clip_grad} is not above 0; leave it out not to clip")
        for schedule, needed in (("step", "decay_epochs"), ("multistep", "milestones")):
            if self.schedule == schedule and not getattr(self, needed):
                raise ValueError(f"schedule={schedule} never decays without {needed}: set it, or schedule=constant")


@dataclass(frozen=True)
class ValidationConfig:
    """What is measured after each epoch on the held-out images, and what the best epoch is best at.

    Attributes:
        steps: PGD steps of the attack, which has the training threat's norm and eps.
        images: Validate on this many of the held-out images; all if not given.
        select: The sum of clean accuracy and accuracy under the attack (the paper's measure), or one of the two.
    """

    steps: int = 10
    images: int | None = None
    select: Literal["sum", "robust", "clean"] = "sum"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is not at least 1")
        if self.images is not None and self.images < 1:
            raise ValueError(f"images={self.images} is not at least 1; leave it out for all that are held out")


@dataclass(frozen=True)
class TrainConfig:
    """Robust training of a timm backbone.

    Attributes:
        data: Data set, splits, augmentation.
        model: Backbone.
        teacher: A second network, for methods that learn from one; its name is empty for the others.
        attack: The threat and the attack on the training images. Validation and test take its norm and eps.
        method: Training method; `method.name` is one of the names below.
        optimizer: Optimizer and schedule.
        balance: How methods that balance their loss by clean training accuracy get it.
        guard: Watch over single-step training.
        awp: Adversarial weight perturbation.
        average: Average of the weights.
        analysis: Gradients, features and statistics of the paper's figures, measured along the way.
        validation: After each epoch, on held-out images.
        evaluation: At the end, once, on the test set.
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
        checkpoint_minutes: Minutes between checkpoints within an epoch; there is one after every epoch.
        keep_checkpoints: Newest checkpoints to keep.
        log_every: Steps between two updates of the log and the trackers.
        half: Export the weights in half precision, rounded to float16, at half the size; they are evaluated so.
        trackers: Experiment trackers of accelerate by name: tensorboard, wandb, trackio ...
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: ModelConfig = field(default_factory=lambda: ModelConfig(name=""))
    attack: PGD = field(default_factory=PGD)
    method: Any = field(default_factory=ARATConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    awp: AWPConfig = field(default_factory=AWPConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(autoattack_images=1000, fast=True))
    twin: Any = None
    epochs: int = 30
    seed: int = 0
    output: str | None = None
    resume: bool = False
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: Literal["off", "auto", "on"] = "off"
    threads: int | None = None
    warm_start: bool = False
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 2
    log_every: int = 20
    half: bool = False
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads} is not at least 1; leave it out for cores / local processes")
        if self.teacher.freeze_norms != "none":
            raise ValueError("teacher.freeze_norms: it is for the network that is trained, model.freeze_norms")
        if self.optimizer.schedule == "plateau" and not self.data.validates:
            raise ValueError(
                "optimizer.schedule=plateau follows the validation score: hold images out with data.val_size, name a "
                "data.val_split, or take another schedule"
            )
        if self.optimizer.warmup_prefix and self.optimizer.warmup_epochs >= self.epochs:
            raise ValueError(
                f"optimizer.warmup_prefix: warmup_epochs={self.optimizer.warmup_epochs} leaves no epoch of "
                f"epochs={self.epochs} for the schedule behind it"
            )
        # Checked while the command line is read, so that a threat that cannot be is an error before anything is built.
        self.evaluated()

    def notes(self) -> list[str]:
        """What a person should know of the settings: what is asked for and comes to nothing."""
        late = {
            "optimizer.warmup_epochs": self.optimizer.warmup_epochs,
            "attack.warmup_epochs": self.attack.warmup_epochs,
            "awp.start_epoch": self.awp.start_epoch if self.awp.gamma else 0,
        }
        found = [
            f"WARNING: {name}={first} is not below epochs={self.epochs}: what comes after it is never reached"
            for name, first in late.items()
            if first >= self.epochs
        ]
        if self.model.freeze_norms != "none" and not self.model.pretrained:
            found.append("WARNING: model.freeze_norms keeps norms as they begin: set model.pretrained for trained ones")
        return found

    def evaluated(self) -> EvaluationConfig:
        """The evaluation with the training threat where it does not say its own."""
        return self.evaluation.with_threat(self.attack.norm, self.attack.radius)
