"""A run of seconds on digits, and accelerate's state put back, for the tests of the engine."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from timm_arat import PGD
from timm_arat.data import DataConfig
from timm_arat.engine.accelerator import start
from timm_arat.engine.companions import COMPANIONS, Companion
from timm_arat.engine.config import ModelConfig, OptimizerConfig, TrainConfig, ValidationConfig
from timm_arat.engine.session import Session, prepare
from timm_arat.evaluation import EvaluationConfig
from timm_arat.methods import MadryConfig

C = TypeVar("C", bound=Companion)

EPS = 0.1
DATA = DataConfig(name="digits", in_chans=1, image_size=8, val_size=100, batch_size=128)
MODEL = ModelConfig(name="resnet20_cifar", kwargs={"layers": [1, 1], "channels": [8, 16]})


def tiny(folder: Path, **changes) -> TrainConfig:
    """Two epochs of single-step adversarial training, but for `changes`."""
    config = TrainConfig(
        data=DATA,
        model=MODEL,
        attack=PGD(eps=EPS, steps=1),
        method=MadryConfig(),
        optimizer=OptimizerConfig(lr=0.05),
        validation=ValidationConfig(steps=2),
        evaluation=EvaluationConfig(attacks=("clean",), batch_size=200, fast=True),
        epochs=2,
        threads=1,
        mixed_precision="no",
        output=str(folder),
    )
    return replace(config, **changes)


def session_of(config: TrainConfig, companions: Sequence[type[Companion]] = ()) -> Session:
    """The parts of a run as `train` prepares them; what its log says is printed."""
    folder = Path(config.output or "")
    folder.mkdir(parents=True, exist_ok=True)
    return prepare(config, folder, start(config, folder), (*COMPANIONS, *companions), print)


def companion(session: Session, kind: type[C]) -> C:
    """The one companion of `session` of this kind."""
    (found,) = [each for each in session.companions if type(each) is kind]
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    """What a run's summary.jsonl holds."""
    return [json.loads(line) for line in (folder / "summary.jsonl").read_text().splitlines()]


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
