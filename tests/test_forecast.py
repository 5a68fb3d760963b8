"""What `train.py --dry-run` says beforehand, against what is there afterwards."""

import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_engine import DATA, fresh_accelerate, session_of, tiny  # noqa: F401  # a fixture

from timm_arat import PGD
from timm_arat.engine import checkpoint
from timm_arat.engine.config import AWPConfig, GuardConfig, OptimizerConfig
from timm_arat.engine.costs import Forecast, Passes
from timm_arat.engine.forecast import Operations, _watched, forecast
from timm_arat.engine.train import train
from timm_arat.methods import MadryConfig, StandardConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
ROOT = Path(__file__).parents[1]


def test_operations_are_three_forward_passes_a_step_and_three_a_step_of_the_attack(tmp_path):
    """But for the first layer, of which training needs no gradient to the pixels."""
    config = tiny(tmp_path, method=StandardConfig())
    session = session_of(config)
    with Operations() as counter:
        session.method.network(torch.rand(1, 1, 8, 8))
    images = config.epochs * len(session.loader) * config.data.batch_size
    one = counter.total * images
    plain, attacked = forecast(config), forecast(replace(config, method=MadryConfig(), attack=PGD(eps=0.1, steps=2)))
    assert plain.passes == Passes(1, 1) and 2.8 * one < plain.flops < 3 * one
    # A step of the attack is a forward pass and a backward pass to the pixels alone, which is as long as the forward.
    assert attacked.passes == Passes(3, 3)
    assert attacked.flops - plain.flops == pytest.approx(2 * 2 * one, rel=0.04)  # and folding looks at an image twice


def test_epochs_that_do_not_follow_each_other_are_tried_with_a_warm_start(tmp_path):
    settings = {"warm_start": True, "awp": AWPConfig(gamma=0.005, start_epoch=4), "epochs": 6}
    found = forecast(tiny(tmp_path, method=MadryConfig(), attack=PGD(eps=0.1, steps=1), **settings))
    assert found.passes == Passes((4 * 2 + 2 * 3) / 6, (4 * 2 + 2 * 3) / 6)


def test_what_could_not_be_trained_has_no_forecast(tmp_path):
    with pytest.raises(ValueError, match="warm_start: standard has no attack to start"):
        forecast(tiny(tmp_path, method=StandardConfig(), warm_start=True))


def test_what_a_graph_holds_is_counted_once_while_it_is_there():
    x = torch.ones(10, 10, requires_grad=True)
    with _watched({x.untyped_storage().data_ptr()}) as held:
        y = (x * x).exp()  # exp keeps its own result, 400 bytes; x is left out
        assert held == {"now": 400, "most": 400}
        z = (y * y).sum()  # y again
        assert held["now"] == 400
        z.backward()
    del y, z
    assert held == {"now": 0, "most": 400}


@pytest.mark.parametrize(
    ("optimizer", "guard"),
    [
        (OptimizerConfig(lr=0.01), GuardConfig()),
        (OptimizerConfig(name="adamw", lr=0.001), GuardConfig()),
        (OptimizerConfig(name="adamw", lr=0.001), GuardConfig(every=5, images=32)),
    ],
)
def test_a_run_takes_no_more_of_the_disk_than_was_said_and_not_much_less(tmp_path, optimizer, guard):
    config = tiny(tmp_path / "run", optimizer=optimizer, guard=guard, epochs=4)
    said = forecast(config).disk
    train(config)
    binary = [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".safetensors", ".bin")]
    assert 0.5 * said < sum(path.stat().st_size for path in binary) <= said


def test_a_full_disk_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ValueError, match=r"the run keeps up to .* GB .*lower keep_checkpoints"):
        checkpoint.check_room(session_of(tiny(tmp_path)))


def test_the_lines_are_for_a_person():
    found = Forecast(Passes(11, 10.5), training=7200.0, measuring=90.0, flops=7.2e15, memory=2**31, disk=2**29)
    assert found.lines(8) == [
        "a step: 11 forward + 10.5 backward passes an image",
        "training: 7.2 PFLOP; 2.0 h here, at 1 TFLOP/s; 2.0 h at 1 TFLOP/s, to be divided by what another device "
        "sustains",
        "validation and test: about 1.5 min here",
        "memory: 2.00 GiB of tensors in each of 8 processes",
        "disk: 0.50 GiB in the run's folder",
    ]


def test_a_dry_run_trains_nothing_and_writes_nothing(tmp_path):
    words = ["--dry-run", "--epochs", "2", "--output", "run"]
    command = [sys.executable, str(ROOT / "recipes/train.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    costs = ["a step", "training", "validation and test", "memory", "disk"]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()[1:]] == [*costs, "its twin", *costs]
    assert not list(tmp_path.iterdir())
