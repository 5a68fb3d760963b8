"""Batches whose augmentation depends on seed, epoch and position only, so that a resumed run sees the same images."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class SeededBatches(Dataset[Any]):
    """A data set that draws its augmentation from generators of its own (torch's, numpy's, Python's), one seed a batch.

    It leaves the global generators, from which attacks draw, untouched; so neither prefetching nor skipping the batches
    before a checkpoint changes what follows. Set `epoch` before iterating. With `grids`, an item is not (x, y) but
    (x, y, index, grid), see `Images.grid`. Batches are mixed as the data set says (`Images.mix`), and y is then a row
    of K soft labels; without `mix` they are not.

    Raises:
        ValueError: `grids` of a data set that cannot have them.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, grids: bool = False, mix: bool = True) -> None:
        self.dataset, self.grids = dataset, grids
        self.mix = getattr(dataset, "mix", None) if mix else None
        self.seed = seed
        self.epoch = 0
        if grids and (reason := getattr(dataset, "no_grid", "")):
            raise ValueError(f"warm_start: {reason}")

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """A batch; torch's fetcher asks for whole batches where this exists."""
        with _forked_generators():
            self._seed(indices[0])
            pairs = [self.dataset[index] for index in indices]
            if self.mix is not None:
                pairs = self._mixed(pairs)
            if not self.grids:
                return pairs
            self._seed(indices[0])  # so that the grids draw what their images have drawn
            images: Any = self.dataset  # `Images`, which has grids
            return [(*pair, index, images.grid()) for pair, index in zip(pairs, indices, strict=True)]

    def _mixed(self, pairs: list[Any]) -> list[Any]:
        if len(pairs) % 2:
            raise ValueError(
                f"data.mixup mixes the images of a batch in pairs, and one has {len(pairs)}: give an even number"
            )
        assert self.mix is not None
        x, y = self.mix(*stack(pairs))
        return list(zip(x.clamp_(0, 1), y, strict=True))  # a sum of weights may exceed 1 by its rounding

    def _seed(self, first: int) -> None:
        # No two batches of an epoch have the same first image, so no two have the same seed.
        seed = seed_of(self.seed, self.epoch, first)
        # Only the CPU's generator: torch.manual_seed would also reset those of GPUs, from which attacks draw.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)


def seed_of(*words: int | str) -> int:
    """`words` mixed into one seed by a named hash function; Python's own may differ between its versions."""
    key = " ".join(map(str, words)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 2**63


@contextmanager
def _forked_generators() -> Iterator[None]:
    """The generators of torch on the CPU, numpy and Python are put back afterwards."""
    in_numpy, in_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(in_numpy)
        random.setstate(in_python)


def stack(batch: list[Any]) -> tuple[Tensor, Tensor]:
    """Images NxCxHxW and classes N, or soft labels NxK, of a list of items."""
    labels = [item[1] for item in batch]
    y = torch.stack(labels) if isinstance(labels[0], Tensor) else torch.tensor(labels)
    return torch.stack([item[0] for item in batch]), y
