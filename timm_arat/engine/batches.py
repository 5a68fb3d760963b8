"""Batches whose augmentation depends on seed, epoch and position only, so that a resumed run sees the same images."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class SeededBatches(Dataset[Any]):
    """A data set that draws its augmentation from a generator of its own, one seed a batch.

    It leaves the global generator, from which attacks draw, untouched; so neither prefetching nor skipping the batches
    before a checkpoint changes what follows. Set `epoch` before iterating. With `grids`, an item is not (x, y) but
    (x, y, index, grid), see `Images.grid`.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, grids: bool = False) -> None:
        self.dataset, self.grids = dataset, grids
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """A batch; torch's fetcher asks for whole batches where this exists."""
        with torch.random.fork_rng(devices=[]):
            self._seed(indices[0])
            pairs = [self.dataset[index] for index in indices]
            if not self.grids:
                return pairs
            self._seed(indices[0])  # so that the grids draw what their images have drawn
            images: Any = self.dataset  # `Images`, which has grids
            return [(*pair, index, images.grid()) for pair, index in zip(pairs, indices, strict=True)]

    def _seed(self, first: int) -> None:
        # No two batches of an epoch share their first index, and no two epochs their product with it.
        # The CPU's alone: torch.manual_seed would reset those of the devices too, from which attacks draw.
        torch.default_generator.manual_seed(hash((self.seed, self.epoch, first)) % 2**63)


def stack(batch: list[Any]) -> tuple[Tensor, Tensor]:
    """Images NxCxHxW and classes N of a list of items."""
    return torch.stack([item[0] for item in batch]), torch.tensor([item[1] for item in batch])
