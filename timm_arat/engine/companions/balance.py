"""Clean training accuracy before each epoch, by which a method balances its loss (ARAT's official code)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...data import subset, tensors
from ...methods import Method
from ..batches import SeededBatches, seed_of, stack
from ..config import TrainConfig
from ..measure import clean_accuracy
from ._base import Companion

if TYPE_CHECKING:
    from ..session import Session


class Balance(Companion):
    """Measures clean accuracy on some training images and hands it to the method."""

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        self.images = self._drawn(epoch=0)

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        """Where the method balances by it."""
        return method.needs_clean_accuracy

    def begin(self, epoch: int, resumed: bool) -> None:
        """Measure; after a resume in the middle of an epoch the checkpoint has brought what was measured."""
        if resumed:
            return
        if self.session.config.balance.redraw:
            self.images = self._drawn(epoch)
        x, y = self.images
        batch = self.session.config.evaluation.batch_size
        accuracy = clean_accuracy(self.accelerator, self.method, self.method.clean_logits, x, y, batch)
        self.method.set_clean_accuracy(accuracy)

    def _drawn(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Images NxCxHxW and their classes N, the same ones and augmentation whenever `epoch` is asked for."""
        config, train = self.session.config, self.session.data.train
        assert train is not None
        count = min(config.balance.count, len(train.labels))
        if config.balance.redraw:
            generator = torch.Generator().manual_seed(seed_of(config.seed, epoch, "balance"))
            indices = torch.randperm(len(train.labels), generator=generator)[:count]
        else:
            indices = subset(train.labels, count, config.seed)
        if config.balance.images == "plain":
            return tensors(train, indices)
        batches = SeededBatches(train, config.seed, mix=False)
        batches.epoch = epoch
        return stack(batches.__getitems__(indices.tolist()))
