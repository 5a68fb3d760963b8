"""Clean training accuracy before each epoch, by which a method balances its loss (ARAT's official code)."""

from typing import TYPE_CHECKING

from ...data import subset, tensors
from ...methods import Method
from ..batches import SeededBatches, stack
from ..config import TrainConfig
from ..measure import clean_accuracy
from ._base import Companion

if TYPE_CHECKING:
    from ..session import Session


class Balance(Companion):
    """Measures clean accuracy on some training images and hands it to the method."""

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        config, train = session.config, session.data.train
        assert train is not None
        indices = subset(train.labels, min(config.balance.count, len(train.labels)), config.seed)
        if config.balance.images == "plain":
            self.images = tensors(train, indices)
        else:
            self.images = stack(SeededBatches(train, config.seed, mix=False).__getitems__(indices.tolist()))

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        """Where the method balances by it."""
        return method.needs_clean_accuracy

    def begin(self, epoch: int, resumed: bool) -> None:
        """Measure; after a resume in the middle of an epoch the checkpoint has brought what was measured."""
        if resumed:
            return
        x, y = self.images
        batch = self.session.config.evaluation.batch_size
        accuracy = clean_accuracy(self.accelerator, self.method, self.method.clean_logits, x, y, batch)
        self.method.set_clean_accuracy(accuracy)
