"""A run of seconds on digits, and accelerate's state put back, for the tests of the engine."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from timm_arat import PGD
from timm_arat.data import DataConfig
from timm_arat.engine.config import EvaluationConfig, ModelConfig, OptimizerConfig, TrainConfig
from timm_arat.methods import MadryConfig

EPS = 0.1
DATA = DataConfig(name="digits", in_chans=1, image_size=8, val_size=100, batch_size=128, eval_batch_size=200)
MODEL = ModelConfig(name="resnet20_cifar", kwargs={"layers": [1, 1], "channels": [8, 16]})


def tiny(folder: Path, **changes) -> TrainConfig:
    """Two epochs of single-step adversarial training, but for `changes`."""
    config = TrainConfig(
        data=DATA,
        model=MODEL,
        method=MadryConfig(attack=PGD(eps=EPS, steps=1)),
        optimizer=OptimizerConfig(lr=0.05),
        evaluation=EvaluationConfig(eps=EPS, val_steps=2, attacks=("clean",)),
        epochs=2,
        threads=1,
        output=str(folder),
    )
    return replace(config, **changes)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state a process, and a run sets torch's number of threads."""
    before = torch.get_num_threads()
    yield
    forget()
    torch.set_num_threads(before)


def forget() -> None:
    """Let the next run of this process have an accelerator of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        same(a[key], b[key]) if isinstance(a[key], dict) else torch.equal(a[key], b[key]) for key in a
    )
