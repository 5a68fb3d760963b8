"""A watch over single-step adversarial training, which at times forgets every attack but its own within a few steps.

FGSM from a random start (Wong et al., arXiv:2001.03994) trains as well as PGD until it overfits to its own step; then
accuracy under PGD falls to zero. As in Li et al. (arXiv:2006.03089), a PGD on a few images notices it and some steps of
PGD training repair it; here, beyond the paper, they start from weights of before the fall, and each time they are twice
as many.
"""

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ...attacks import PGD
from ...data import subset, tensors
from ...methods import Method, method_class, method_name
from ..config import TrainConfig
from ..measure import average_named, robust_accuracy
from ._base import Companion

if TYPE_CHECKING:
    from ..session import Session

# An untrained network's accuracy under PGD wanders between chance and zero: a smaller fall, as a share of all images,
# is not a collapse.
SMALLEST_FALL = 0.1


class Guard(Companion):
    """Measures `method` now and then, and takes it back where it collapsed; saved and resumed with its state dict.

    It decides by what all processes measured together, so all decide alike. Nothing is drawn from the training's
    generators: without a collapse the training is bitwise that without the guard.

    Attributes:
        best: Highest accuracy measured, in [0, 1].
        last: Newest accuracy measured; None before the first.
        remaining: Optimizer steps of the recovery that are left.
        recoveries: How often the weights were taken back.
        snapshot: The optimizer step (`step`) of the weights to go back to, their `method` and `optimizer` state.
    """

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        config, train = session.config, session.data.train
        assert train is not None
        self.config, self.optimizer = config.guard, session.optimizer
        # At the full eps during a warm-up too: the best so far must stay comparable.
        self.measured_by = PGD(norm=config.attack.norm, eps=config.attack.eps, steps=self.config.steps)
        self.images = tensors(train, subset(train.labels, min(self.config.images, len(train.labels)), config.seed))
        self.batch, self.seed = config.evaluation.batch_size, config.seed
        self.best = 0.0
        self.last: float | None = None
        self.remaining = self.recoveries = 0
        self.snapshot: dict[str, Any] = {}

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        return config.guard.every > 0 and method.attacks

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        guard, name = config.guard, method_name(config.method)
        if not guard.every:
            return
        if not method_class(name).attacks:
            raise ValueError(
                f"guard.every={guard.every}: method.name={name} has no attack to guard; leave one of the two out"
            )
        if not method_class(name).deploys_attacked:
            raise ValueError(
                f"guard.every={guard.every}: it measures the branch that is deployed, and {name} attacks the other "
                "one: leave guard out"
            )
        if guard.steps < config.attack.steps:
            raise ValueError(
                f"guard.steps={guard.steps} is below attack.steps={config.attack.steps}: the guard would measure and "
                "recover with less than what is trained on"
            )

    def attack(self, attack: PGD) -> PGD:
        """The many-step attack during a recovery."""
        return replace(attack, steps=self.config.steps, step_size=None) if self.remaining else attack

    def after_update(self, update: int, epoch: int) -> None:
        """Measure now and then, and take the weights back where they collapsed."""
        self.remaining = max(0, self.remaining - 1)
        if update % self.config.every:
            return
        self.last = last = self._measure()
        if last < self.config.drop * self.best and self.best - last >= SMALLEST_FALL:
            self._restore()
            self.session.say(
                f"step {update}: accuracy under PGD-{self.config.steps} fell from its best of {100 * self.best:.1f} % "
                f"to {100 * last:.1f} % on the guard's images: back to the weights of step {self.snapshot['step']}, "
                f"and the next {self.remaining} steps attack with {self.config.steps} steps"
            )
            return
        self.best = max(self.best, last)
        if last >= (1 - self.config.tolerance) * self.best:
            self._keep(update)

    def row(self) -> dict[str, Any]:
        """What summary.jsonl gets."""
        return {"guard_robust": self.last, "guard_recoveries": self.recoveries}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs."""
        return {name: getattr(self, name) for name in ("best", "last", "remaining", "recoveries", "snapshot")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        for name, value in state.items():
            setattr(self, name, value)

    def _measure(self) -> float:
        return robust_accuracy(
            self.accelerator, self.method.network, self.measured_by, *self.images, self.batch, self.seed
        )

    def _trained(self) -> nn.ModuleDict:
        """All that the optimizer trains, a teacher that learns along too: its momentum goes back with its weights."""
        return nn.ModuleDict(dict(self.method.named_children()))

    def _keep(self, step: int) -> None:
        weights = deepcopy(dict(self._trained().state_dict()))
        # The main process alone saves its snapshot, so all must have the same one.
        average_named(self.accelerator, weights.items())
        self.snapshot = {"step": step, "method": weights, "optimizer": deepcopy(self.optimizer.state_dict())}

    def _restore(self) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self._trained().load_state_dict(self.snapshot["method"])
        self.optimizer.load_state_dict(deepcopy(self.snapshot["optimizer"]))  # torch would train on its tensors
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule goes on
        # A training that collapses once is on its way to the next time: it gets longer to leave that way.
        self.remaining = self.config.recover * 2**self.recoveries
        self.recoveries += 1
