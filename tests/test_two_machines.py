"""Two launchers that know each other by an address alone, as on two machines, beside two processes and one."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
NODE = ROOT / "recipes/launch/node.sh"
# Without BatchNorm, whose statistics are of a process's own images, and without random numbers of its own.
SAME = (
    "--config digits --twin null --epochs 1 --model.name test_convnext --model.kwargs {} --data.image_size 32 "
    "--data.crop none --data.hflip 0 --method.name madry --attack.steps 2 --attack.random_start false "
    "--optimizer.lr 0.01 --evaluation.attacks [clean] --validation.steps 1 --mixed_precision no --threads 1"
).split()

pytestmark = pytest.mark.long


def environment(**extra: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "ACCELERATE_USE_CPU": "true", **extra}


def last_weights(run: Path) -> torch.Tensor:
    weights = load_file(run / "weights/last.safetensors")
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def on_two_machines(run: Path, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """By recipes/launch/node.sh, one process on each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    facts = {"MAIN": "127.0.0.1", "PORT": port, "NODES": "2", "GPUS": "1"}
    started = [
        subprocess.Popen(
            ["bash", NODE, *words, "--output", str(run)], env=environment(**facts, NODE=str(number)), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *answer)
        for process, answer in zip(started, answers, strict=True)
    ]


def test_two_machines_train_what_two_processes_and_one_train(tmp_path):
    for answer in on_two_machines(tmp_path / "machines", *SAME, "--data.batch_size", "32"):
        assert answer.returncode == 0, answer.stderr[-2000:]
    launcher = ["accelerate", "launch", "--main_process_port", "0"]
    several = ["--multi_gpu", "--num_processes", "2"]
    for name, words, batch in (("processes", several, "32"), ("one", [], "64")):
        subprocess.run(
            [*launcher, *words, ROOT / "recipes/train.py", *SAME, "--data.batch_size", batch, "--output",
             str(tmp_path / name)],
            env=environment(), check=True, capture_output=True,
        )  # fmt: skip
    machines, processes, one = (last_weights(tmp_path / name) for name in ("machines", "processes", "one"))
    assert torch.equal(machines, processes)
    assert (machines - one).abs().max() < 1e-4 * one.abs().max(), "the same images in a batch, summed in another order"


def test_a_process_that_fails_ends_the_others_at_once_with_its_own_error(tmp_path):
    begun = time.monotonic()
    answer = subprocess.run(
        ["accelerate", "launch", "--main_process_port", "0", "--multi_gpu", "--num_processes", "2",
         ROOT / "tests/launched_failing.py", *SAME, "--epochs", "500", "--output", str(tmp_path / "run")],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert answer.returncode != 0 and time.monotonic() - begun < 240, "the first process did not wait for gradients"
    said = [line for line in answer.stderr.splitlines() if "Error: " in line]
    assert "RuntimeError: this process alone has failed" in said[0], said


def test_synchronised_norms_count_both_branches_over_all_processes(tmp_path):
    """Two processes with half of a batch each train what one does with the whole, where statistics are of both."""
    words = [*SAME, "--model.name", "resnet20_cifar", "--model.kwargs", "{layers: [1, 1], channels: [8, 16]}"]
    words += ["--method.name", "arat", "--method.auto_balance", "false", "--data.image_size", "8"]
    words += ["--attack.norm", "l2", "--attack.eps", "0.5"]  # a step by the sign would make much of rounding
    # One batch an epoch, two epochs: a longer training makes much of it as well.
    words += ["--data.val_size", "1373", "--validation.images", "50", "--epochs", "2", "--optimizer.warmup_epochs", "0"]
    launcher = ["accelerate", "launch", "--main_process_port", "0"]
    several = ["--multi_gpu", "--num_processes", "2"]
    for name, processes, script, batch, own in (
        ("one", [], "recipes/train.py", "64", []),
        ("two", several, "tests/launched_sync.py", "32", ["--model.sync_norm", "true"]),
        ("apart", several, "recipes/train.py", "32", []),
    ):
        subprocess.run(
            [*launcher, *processes, ROOT / script, *words, *own, "--data.batch_size", batch, "--output",
             str(tmp_path / name)],
            env=environment(), check=True, capture_output=True,
        )  # fmt: skip
    one, two, apart = (last_weights(tmp_path / name) for name in ("one", "two", "apart"))
    assert (two - one).abs().max() < 1e-3 * (apart - one).abs().max(), "weights and statistics of both branches"
