"""Averages of the weights, and the norm statistics that belong to them."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from ..methods import Method
from ..modes import keep_modes
from .config import AverageConfig


class Average(nn.Module):
    """The average of a method's weights over the steps it is told of; saved and resumed with its state dict."""

    updates: Tensor
    average: ModelEmaV3 | AveragedModel

    def __init__(self, method: Method, config: AverageConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("updates", torch.tensor(0))
        self.average = ModelEmaV3(method, decay=config.decay) if config.kind == "ema" else AveragedModel(method)

    @property
    def is_filled(self) -> bool:
        """Whether anything was averaged yet."""
        return int(self.updates) > 0

    def step(self, method: Method, epoch: int, step: int) -> None:
        """Take in the weights after global step `step` (from 1) of epoch `epoch`."""
        if epoch < self.config.start_epoch:
            return
        if isinstance(self.average, ModelEmaV3):
            # The first weights replace those of the initialisation.
            self.average.update(method) if self.is_filled else self.average.set(method)
            self.updates += 1
        elif step % self.config.every == 0:
            self.updates += 1
            self.average.update_parameters(method)

    def method(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Method:
        """A copy of the averaged method whose norm statistics are those of its own activations on `batches`."""
        method = deepcopy(self.average.module)
        assert isinstance(method, Method)
        reestimate(method, batches)
        return method


def reestimate(method: Method, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace the running statistics of every BatchNorm, both branches, by their mean over `batches`, in place.

    Averaged weights have activations of their own, so the averaged statistics do not fit them. Each batch takes the
    method's own forward, so each branch sees its kind of image; the attack uses the batch's statistics meanwhile.
    """
    # modules() has each branch of a split norm as a module of its own, once.
    frozen = {id(norm) for norm in method.frozen_norms}
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and id(m) not in frozen]
    momenta = [norm.momentum for norm in norms]
    attack = getattr(method, "attack", None)
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch: the cumulative mean
        if attack is not None:
            method.attack = replace(attack, norm_mode="batch")
        with keep_modes(method), torch.no_grad():
            method.train()
            for x, y in batches:
                method(x, y)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        if attack is not None:
            method.attack = attack
