"""Averages of the weights, and the norm statistics that belong to them."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...methods import Method
from ...modes import keep_modes
from ..batches import seed_of, stack
from ..config import TrainConfig
from ..measure import average_statistics
from ._base import Companion

if TYPE_CHECKING:
    from ..session import Session


class Average(Companion):
    """The average of what a method says to average, over the steps from `start_epoch` on.

    Until it holds anything, the trained weights themselves are validated and saved.

    Raises:
        ValueError: no step of the run would go into it.
    """

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        self.config, epochs = session.config.average, session.config.epochs
        if not any(self._takes(n + 1, n // session.updates) for n in range(epochs * session.updates)):
            raise ValueError(
                f"average: none of the {epochs * session.updates} steps of {epochs} epochs goes into an average of "
                f"kind={self.config.kind} with start_epoch={self.config.start_epoch} and every={self.config.every}: "
                "lower these, train longer, or set kind to none"
            )
        ema = get_ema_multi_avg_fn(self.config.decay) if self.config.kind == "ema" else None
        self.average = AveragedModel(self.method.averaged(), multi_avg_fn=ema)

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        return config.average.kind != "none"

    def after_update(self, update: int, epoch: int) -> None:
        """Take in the weights: each of ema's, and swa's at every `every`-th update."""
        if self._takes(update, epoch):
            self.average.update_parameters(self.method.averaged())

    def _takes(self, update: int, epoch: int) -> bool:
        due = self.config.kind == "ema" or update % self.config.every == 0
        return due and epoch >= self.config.start_epoch

    def row(self) -> dict[str, Any]:
        """How many steps have gone in, which says of the best weights whether they are an average."""
        return {"averaged_updates": int(self.average.n_averaged)}

    def candidate(self, method: Method) -> Method:
        """A copy of `method` with the averaged weights, and statistics of their own activations on training images."""
        if not self.average.n_averaged:
            return method
        method = deepcopy(method)
        with torch.no_grad():
            pairs = zip(method.averaged().parameters(), self.average.module.parameters(), strict=True)
            for mine, mean in pairs:
                mine.copy_(mean)
        reestimate(method, self._batches())
        average_statistics(self.accelerator, method)
        return method

    def state_dict(self) -> dict[str, Any]:
        return dict(self.average.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """This process's share of random training images, augmented as in this epoch; the same in each epoch."""
        images, config, device = self.session.images, self.session.config, self.accelerator.device
        size = config.data.batch_size
        # Not the first ones: folders of images come class by class, and the statistics would be those of a few classes.
        generator = torch.Generator().manual_seed(seed_of(config.seed, "average"))
        order = torch.randperm(len(images), generator=generator).tolist()
        share = order[self.accelerator.process_index :: self.accelerator.num_processes]
        for start in range(0, min(self.config.batches, len(self.session.loader)) * size, size):
            x, y = stack(images.__getitems__(share[start : start + size]))
            yield x.to(device), y.to(device)


def reestimate(method: Method, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace the running statistics of every BatchNorm, both branches, by their mean over `batches`, in place.

    Averaged weights have activations of their own, so the statistics of the steps do not fit them. Each batch takes the
    method's own passes, in float32, so each branch sees its kind of image; the attack uses the batch's statistics, but
    where norms are frozen.
    """
    # modules() has each branch of a split norm as a module of its own, once.
    frozen = {id(norm) for norm in method.frozen_norms}
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and id(m) not in frozen]
    momenta = [norm.momentum for norm in norms]
    attack = replace(method.attack, norm_mode="batch")
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch: the cumulative mean
        with keep_modes(method), torch.no_grad():
            method.train()
            for x, y in batches:
                x, x_adv = method.perturb(x, y, attack=attack)
                method.terms(x, y, x_adv)  # not `method(...)`, whose forward accelerate has put under autocast
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
