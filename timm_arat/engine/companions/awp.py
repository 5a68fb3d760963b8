"""Adversarial weight perturbation (Wu, Xia and Wang, NeurIPS 2020, arXiv:2004.05884): flat minima for any method.

Before a step each weight moves by `gamma` of its own length in the direction that raises the loss on the step's images;
the gradient and the optimizer's step are taken there; then the weight moves back.

As in the authors' code (csdongxian/AWP a7acf5d), weights are the parameters called so of two dimensions or more, so
neither norms nor biases nor a transformer's embeddings of positions; weight decay sees the perturbed ones; and finding
the direction leaves the running statistics alone.
Deviations: the direction is the gradient itself, where the authors take one SGD step of a copy of the network; after
their normalisation to the weight's length the two are the same. And the weights of a method's predictors are perturbed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...analysis.untouched import untouched
from ...methods import Method
from ..accelerator import unscaled
from ..config import TrainConfig
from ._base import Batch, Companion

if TYPE_CHECKING:
    from ..session import Session


class AWP(Companion):
    """Perturbs the weights of `method.averaged()`, that is, not those of a teacher, around each step."""

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        self.config = session.config.awp
        self.weights: list[Tensor] = [
            parameter
            for name, parameter in self.method.averaged().named_parameters()
            if parameter.requires_grad and parameter.ndim > 1 and "weight" in name.rpartition(".")[2]
        ]
        self.active = True

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        return config.awp.gamma > 0

    def begin(self, epoch: int, resumed: bool) -> None:
        self.active = epoch >= self.config.start_epoch

    @contextmanager
    def around_step(self, batch: Batch, x: Tensor, x_adv: Tensor) -> Iterator[None]:
        """Inside, the weights are perturbed."""
        if not self.active:
            yield
            return
        offsets = self._offsets(batch, x, x_adv)
        with torch.no_grad():
            for w, offset in zip(self.weights, offsets, strict=True):
                w += offset
        try:
            yield
        finally:
            with torch.no_grad():
                for w, offset in zip(self.weights, offsets, strict=True):
                    w -= offset

    def _offsets(self, batch: Batch, x: Tensor, x_adv: Tensor) -> list[Tensor]:
        """gamma ||w|| g / ||g|| for the gradient g of the method's loss at each weight w; zero where g is."""
        with unscaled(self.accelerator), untouched(self.method):
            loss = self.method.terms(x, batch.y, x_adv).loss()
            # In here: a backward pass refuses statistics that were written to after its forward.
            grads = torch.autograd.grad(loss, self.weights, allow_unused=True)
        found = [torch.zeros_like(w) if grad is None else grad for w, grad in zip(self.weights, grads, strict=True)]
        if self.accelerator.num_processes > 1:
            found = [self.accelerator.reduce(grad, "mean") for grad in found]
        return [
            self.config.gamma * w.detach().norm() / (grad.norm() + 1e-20) * grad
            for w, grad in zip(self.weights, found, strict=True)
        ]
