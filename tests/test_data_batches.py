"""Batches: seed, epoch and position decide them, through every generator, and the global ones are left as they were."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from timm_arat.data import DataConfig, load
from timm_arat.engine.batches import SeededBatches

EVERYTHING = dict(
    crop="rrc",
    hflip=0.5,
    transform=dict(auto_augment="rand-m9-mstd0.5", re_prob=0.5, re_mode="pixel", scale=[0.5, 1]),
    mixup=dict(mixup_alpha=1.0, cutmix_alpha=1.0),
)


@pytest.fixture
def train(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{index}.png")
    config = DataConfig(name="folder", root=str(tmp_path), batch_size=4, **EVERYTHING)
    return load(config, input_size=(3, 16, 16), splits=["train"]).train


def states():
    numpy_state = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2:], random.getstate()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batch(batches, indices):
    return torch.utils.data.default_collate(batches.__getitems__(indices))


def test_a_batch_is_the_same_whatever_the_global_generators_did_and_leaves_them_alone(train):
    batches = SeededBatches(train, seed=3)
    first = batch(batches, [5, 1, 9, 2])
    torch.rand(7), np.random.rand(7), random.random()
    before = states()
    again = batch(batches, [5, 1, 9, 2])
    assert states() == before
    assert same(first, again)


def test_the_generators_are_put_back_after_an_error_too(train):
    before = states()
    with pytest.raises(IndexError):
        SeededBatches(train, seed=3).__getitems__([5, 10**6])
    assert states() == before


def test_seed_epoch_and_position_each_change_a_batch(train):
    batches = SeededBatches(train, seed=3)
    first = batch(batches, [5, 1, 9, 2])
    assert not same(first, batch(SeededBatches(train, seed=4), [5, 1, 9, 2]))
    moved = batch(batches, [1, 5, 9, 2])
    assert not torch.equal(first[0][2], moved[0][2])
    batches.epoch = 1
    assert not same(first, batch(batches, [5, 1, 9, 2]))


def test_the_seed_of_a_batch_is_the_digest_of_its_three_numbers():
    """The first numbers of torch's generator for seeds that `printf '3 1 5' | b2sum -l 64` gives, byte order little."""

    class Drawn(torch.utils.data.Dataset):
        def __getitem__(self, index):
            return torch.rand(2), np.random.rand(2), random.random()

    batches = SeededBatches(Drawn(), seed=3)
    batches.epoch = 1
    ((from_torch, from_numpy, from_python),) = batches.__getitems__([5])
    seed = int.from_bytes(bytes.fromhex("262d8aa497fea6a6"), "little") % 2**63
    assert torch.equal(from_torch, torch.rand(2, generator=torch.Generator().manual_seed(seed)))
    assert np.array_equal(from_numpy, np.random.RandomState(seed % 2**32).rand(2))
    assert from_python == random.Random(seed).random()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_resumed_in_its_middle_is_bitwise_the_same(train, workers):
    def epoch(start):
        batches = SeededBatches(train, seed=3)
        batches.epoch = 1
        order = [[5, 1, 9, 2], [0, 3, 4, 6], [7, 8, 10, 11]][start:]
        return list(DataLoader(batches, batch_sampler=order, num_workers=workers))

    whole, rest = epoch(0), epoch(1)
    assert all(same(one, other) for one, other in zip(whole[1:], rest, strict=True))
    assert same(whole[0], batch(_at(train, 1), [5, 1, 9, 2]))


def _at(train, epoch):
    batches = SeededBatches(train, seed=3)
    batches.epoch = epoch
    return batches
