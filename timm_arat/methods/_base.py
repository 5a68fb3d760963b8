"""What every training method shares: two verbs, `perturb` and the forward of a step, and the terms of its loss."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..attacks import PGD, CrossEntropy, Objective, check, climb, ready
from ..fold import Plan
from ..norm import batch_norms, split_norms
from ..pixels import in_pixels
from ._frozen import Frozen

Self = TypeVar("Self", bound="Method")


@dataclass(frozen=True)
class Terms:
    """The terms of a loss, each a scalar with its graph, and what is known beside them.

    Attributes:
        losses: By name, not weighted.
        weights: By the same names; the loss is the weighted sum.
        output: Logits NxK of the images that the method is trained to classify.
        log: Further scalars for the log.
    """

    losses: dict[str, Tensor]
    weights: dict[str, Tensor | float]
    output: Tensor
    log: dict[str, Tensor] = field(default_factory=dict)

    def loss(self, *names: str) -> Tensor:
        """The weighted sum of all terms, or of those called `names`."""
        return reduce(add, (self.weights[name] * self.losses[name] for name in names or self.losses))

    def as_dict(self, loss: Tensor) -> dict[str, Tensor]:
        """What a step's forward gives, as timm's training tasks: the loss, the output, and the rest for the log."""
        losses = {name: value.detach() for name, value in self.losses.items()}
        return {"loss": loss, "output": self.output, **losses, **self.log}


class Method(nn.Module):
    """Base of the training methods. One step is

        x, x_adv = method.perturb(x, y)   # on the plain network, whose gradients and statistics it leaves alone
        out = method(x, y, x_adv)         # {"loss", "output", ...}: one forward, then out["loss"].backward()

    and `method(x, y)` does both. A trainer wraps the method, not the network, for distributed training, so that it sees
    one forward for each backward; `perturb` is called on the method itself.

    A method says what becomes of each network that it holds. What is registered as a submodule, as usual, is trained
    and saved in checkpoints. Of these, names in `trained_along` are neither averaged nor exported (a teacher that
    learns with its student). A network that is only used is wrapped in `Frozen` and is part of none of this.

    Args:
        model: A timm model.
        config: Settings, an instance of `Config`; `settings` given by name take precedence.
        attack: The attack on the training images; PGD-10 of linf 8/255 if not given.
        teacher: A second timm model, for the methods that need one.

    Attributes:
        network: The backbone behind its normalisation; takes NCHW in [0, 1].
        config: The method's settings, one of `configs`.
        attack: The attack that `perturb` runs unless it is given another.
        frozen_norms: Norms that training leaves as they are; see `freeze_norms`.
        needs_clean_accuracy: `set_clean_accuracy` wants the clean training accuracy before each epoch.

    Raises:
        ValueError: a teacher is missing, or one is given that these settings have no use for; a targeted attack.
    """

    Config: ClassVar[Callable[..., Any]]
    attacks: ClassVar[bool] = True  # whether it trains on adversarial images at all
    deploys_attacked: ClassVar[bool] = True  # whether the branch that is attacked is the one that is exported
    clean_branch: ClassVar[str] = "main"  # of split norms, the branch that clean images train, 'main' or 'aux'
    trained_along: ClassVar[tuple[str, ...]] = ()
    needs_clean_accuracy = False
    config: Any

    def __init__(
        self,
        model: nn.Module,
        config: Any = None,
        *,
        attack: PGD | None = None,
        teacher: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.network = in_pixels(model)
        self.config = replace(config or self.Config(), **settings)
        self.check_teacher(self.config, teacher is not None)
        self.attack = self.checked(attack or PGD())
        self.frozen_norms: list[nn.Module] = []
        self._plan = Plan()

    @classmethod
    def needs_teacher(cls, config: Any) -> bool:
        """Whether the method with the settings `config` needs a second network, the argument `teacher`."""
        return False

    @property
    def model(self) -> nn.Module:
        """The backbone as timm built it (with split norms, where the method splits them)."""
        return self.network.model

    def averaged(self) -> nn.ModuleDict:
        """The submodules of which an average of the weights, or a copy to go back to, is made."""
        return nn.ModuleDict({name: each for name, each in self.named_children() if name not in self.trained_along})

    def checked(self, attack: PGD) -> PGD:
        """`attack`, of the method or of a call; ValueError where the method cannot train on what it makes."""
        if attack.targeted:
            raise ValueError(
                "attack.targeted: the labels of a training batch are the classes to leave; a targeted attack would "
                "make its images easier; leave it out"
            )
        return attack

    def begin_epoch(self) -> None:
        """Tell that an epoch begins: what may be folded for attacks is looked for anew."""
        self._plan = Plan()

    def perturb(
        self, x: Tensor, y: Tensor, start: Tensor | None = None, attack: PGD | None = None
    ) -> tuple[Tensor, Tensor]:
        """The images to train on and their adversarial counterparts, each NxCxHxW.

        Args:
            x: Images NxCxHxW in [0, 1].
            y: Classes N, or the share of each class NxK.
            start: Images to climb from, see `PGD.perturb`.
            attack: Instead of the method's own.

        Raises:
            ValueError: images outside [0, 1], labels or a start that do not fit them, or an attack that the method
                cannot use.
        """
        check(x, y, start)
        attack = self.checked(attack or self.attack)
        with ready(self.network, attack, x, self._plan):
            return x, climb(attack, self.network, x, self.objective(x, y), start).x_adv

    def objective(self, x: Tensor, y: Tensor) -> Objective:
        """What the attack climbs: logits NxK to one loss per image. Called when the network is ready for the attack."""
        return CrossEntropy(y)

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        """Every term of the loss with its graph, for whoever wants the gradients of single terms.

        Args: as `forward`; x and x_adv as `perturb` gave them.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor, x_adv: Tensor | None = None) -> dict[str, Tensor]:
        """{'loss': scalar, 'output': logits NxK, name: scalar for the log}.

        Args:
            x: Images NxCxHxW in [0, 1].
            y: Classes N, or the share of each class NxK.
            x_adv: Adversarial images; found here where they are not given.
        """
        if x_adv is None:
            x, x_adv = self.perturb(x, y)
        terms = self.terms(x, y, x_adv)
        return terms.as_dict(terms.loss())

    def clean_logits(self, x: Tensor) -> Tensor:
        """Logits NxK of clean images in [0, 1], by the branch that serves them in training."""
        return self.network(x)

    def set_clean_accuracy(self, accuracy: float) -> None:
        """Take the clean training accuracy, in [0, 1], before an epoch, where `needs_clean_accuracy`."""

    def freeze_norms(self, branches: Collection[str]) -> None:
        """Keep the BatchNorms of `branches` (of 'main' and 'aux') as they are from here on, for fine-tuning.

        Their affine parameters get no gradient and they normalise by their running statistics, which no longer move.

        Raises:
            ValueError: the backbone has no BatchNorm of a branch, or the attack uses the batch's statistics.
        """
        norms: dict[str, list[nn.Module]] = {
            "main": [norm for _, norm in batch_norms(self.model)],
            "aux": [aux for _, norm in split_norms(self.model) if isinstance(aux := norm.aux_bn[0], _BatchNorm)],
        }
        if self.attacks and self.attack.norm_mode != "eval":
            raise ValueError(
                f"attack.norm_mode={self.attack.norm_mode} normalises by the batch's statistics, and frozen norms by "
                "those that they have: take norm_mode=eval, or freeze none"
            )
        for branch in branches:
            if not norms[branch]:
                raise ValueError(f"{type(self.model).__name__} has no BatchNorm in its {branch} branch to freeze")
            self.frozen_norms += norms[branch]
        for norm in self.frozen_norms:
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self: Self, mode: bool = True) -> Self:
        """As torch's; frozen norms stay in evaluation mode."""
        super().train(mode)
        for norm in self.frozen_norms:
            norm.training = False  # itself alone: its activation and dropout are not frozen
        return self

    @classmethod
    def check_teacher(cls, config: Any, given: bool) -> None:
        """ValueError unless a second network is `given` where the settings `config` need one, and nowhere else."""
        needed = cls.needs_teacher(config)
        if needed and not given:
            raise ValueError(
                f"{cls.__name__} needs a second network: give teacher=, a timm model; in a recipe, its name as "
                "teacher.name"
            )
        if given and not needed:
            raise ValueError(
                f"{cls.__name__} with these settings has no use for a teacher: leave teacher (in a recipe, "
                "teacher.name) out"
            )

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(device)` and its like must reach the networks that are only used, too.
        for each in vars(self).values():
            if isinstance(each, Frozen):
                each.module._apply(fn)
        return super()._apply(fn, recurse)


def precise(t: Tensor) -> Tensor:
    """`t` in float32 where autocast made it half precision: losses and cosines need it."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of right predictions, a scalar in [0, 1]; of mixed labels (NxK) the largest share is the right class."""
    y = y.argmax(-1) if y.ndim == 2 else y
    return (logits.detach().argmax(-1) == y).float().mean()
