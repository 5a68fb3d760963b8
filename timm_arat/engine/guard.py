"""A watch over single-step adversarial training, which at times forgets every attack but its own within a few steps.

FGSM from a random start (Wong et al., arXiv:2001.03994) trains as well as PGD until it overfits to its own step; then
accuracy under PGD falls to zero. As in Li et al. (arXiv:2006.03089), a PGD on a few images notices it and some steps of
PGD training repair it; here, beyond the paper, they start from weights of before the fall, and each time they are twice
as many.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

from accelerate import Accelerator

from ..attacks import PGD
from ..data import Data, subset, tensors
from ..methods import Method
from .config import TrainConfig
from .measure import average_named, robust_accuracy

# An untrained network's accuracy under PGD wanders between chance and zero: a smaller fall, as a share of all images,
# is not a collapse.
SMALLEST_FALL = 0.1


class Guard:
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

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, method: Method, optimizer: Any, data: Data
    ) -> None:
        assert data.train is not None
        self.config, self.accelerator, self.method, self.optimizer = config.guard, accelerator, method, optimizer
        trained = config.method.attack
        # At the full eps during a warm-up too: the best so far must stay comparable.
        self.attack = PGD(norm=trained.norm, eps=trained.eps, steps=self.config.steps)
        labels = data.train.labels
        self.images = tensors(data.train, subset(labels, min(self.config.images, len(labels)), config.seed))
        self.batch, self.seed = config.data.eval_batch_size, config.seed
        self.best = 0.0
        self.last: float | None = None
        self.remaining = self.recoveries = 0
        self.snapshot: dict[str, Any] = {}

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """The method's attack inside: its own, or the many-step one during a recovery."""
        attack = self.method.attack
        if self.remaining:
            self.method.attack = replace(attack, steps=self.config.steps, step_size=None)
        try:
            yield
        finally:
            self.method.attack = attack

    def after(self, step: int) -> str | None:
        """Watch after optimizer step `step` (from 1); a line for the log where the weights were taken back."""
        self.remaining = max(0, self.remaining - 1)
        if step % self.config.every:
            return None
        self.last = last = self._measure()
        if last < self.config.drop * self.best and self.best - last >= SMALLEST_FALL:
            self._restore()
            return (
                f"step {step}: accuracy under PGD-{self.config.steps} fell from its best of {100 * self.best:.1f} % to "
                f"{100 * last:.1f} % on the guard's images: back to the weights of step {self.snapshot['step']}, and "
                f"the next {self.remaining} steps attack with {self.config.steps} steps"
            )
        self.best = max(self.best, last)
        if last >= (1 - self.config.tolerance) * self.best:
            self._keep(step)
        return None

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
        return robust_accuracy(self.accelerator, self.method.pixels, self.attack, *self.images, self.batch, self.seed)

    def _keep(self, step: int) -> None:
        weights = deepcopy(dict(self.method.state_dict()))
        # The main process alone saves its snapshot, so all must have the same one.
        average_named(self.accelerator, weights.items())
        self.snapshot = {"step": step, "method": weights, "optimizer": deepcopy(self.optimizer.state_dict())}

    def _restore(self) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.method.load_state_dict(self.snapshot["method"])
        self.optimizer.load_state_dict(deepcopy(self.snapshot["optimizer"]))  # torch would train on its tensors
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule goes on
        # A training that collapses once is on its way to the next time: it gets longer to leave that way.
        self.remaining = self.config.recover * 2**self.recoveries
        self.recoveries += 1
