"""The launch files: what accelerate and a shell make of them, with stand-ins for Slurm's own commands."""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from helpers_engine import forget, fresh_accelerate  # noqa: F401  # a fixture
from PIL import Image

from timm_arat.engine.config import ModelConfig
from timm_arat.engine.recipe import read_recipe
from timm_arat.engine.train import train

LAUNCH = Path(__file__).parents[1] / "recipes" / "launch"
STUBS = {
    # What srun starts on the first machine; the training writes its words, waits, and stops on SIGTERM.
    "srun": 'shift; SLURM_NODEID=0 exec "$@"',
    "accelerate": 'echo "$@" >> words; echo $$ > pid; trap "echo checkpoint >> said; exit 1" TERM; '
    "[ -e long ] && for i in $(seq 200); do sleep 0.05; done; exit 0",
    "scancel": 'echo "scancel $@" >> said; kill -TERM $(cat pid)',
    "scontrol": 'if [ "$1" = show ]; then echo first; echo second; else echo "scontrol $@" >> said; fi',
}


@pytest.fixture
def slurm(tmp_path):
    """A folder with the launch files and the stand-ins; gives a function that starts the job there."""
    (tmp_path / "recipes").symlink_to(LAUNCH.parent)
    (tmp_path / "bin").mkdir()
    for name, body in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "first,second",
        "SLURM_JOB_NUM_NODES": "2",
    }
    return lambda *words: subprocess.Popen(["bash", LAUNCH / "slurm.sbatch", *words], cwd=tmp_path, env=env)


def test_a_job_begins_and_its_next_turn_resumes(slurm, tmp_path):
    assert slurm("RUN", "--config", "x").wait(30) == 0
    (tmp_path / "RUN" / "checkpoints" / "epoch-0001").mkdir(parents=True)
    assert slurm("RUN", "--config", "x").wait(30) == 0
    first, second = (tmp_path / "words").read_text().splitlines()
    launcher = "launch --multi_gpu --num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip first"
    assert first.startswith(launcher) and first.endswith("train.py --config x --output RUN")
    assert second.startswith(launcher) and second.endswith("train.py --resume RUN")
    assert not (tmp_path / "said").exists(), "a job that ended by itself is not queued again"


def test_a_job_whose_time_is_over_writes_a_checkpoint_and_queues_again(slurm, tmp_path):
    (tmp_path / "long").touch()
    job = slurm("RUN", "--config", "x")
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    job.wait(30)
    assert (tmp_path / "said").read_text().splitlines() == [
        "scancel --signal=TERM 7.0",
        "checkpoint",
        "scontrol requeue 7",
    ]


def test_accelerate_takes_the_file_for_eight_gpus():
    config = load_config_from_file(str(LAUNCH / "gpus8.yaml"))
    assert (config.num_processes, str(config.mixed_precision)) == (8, "bf16")


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_imagenet_recipe_runs_end_to_end_at_toy_size(tmp_path):
    """Folders of photographs, a pretrained start, the warm-up of eps, EMA, bf16; what is smaller is its size."""
    for number in range(24):
        for split in ("train", "val"):
            folder = tmp_path / "data" / split / f"n{number % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (48, 40), (60 * (number % 4), number, 90)).save(folder / f"{number}.jpg")
    config = read_recipe("imagenet_resnet50", "--data.root", str(tmp_path / "data"))
    assert (config.attack.norm, config.attack.radius, config.model.pretrained) == ("linf", 4 / 255, True)
    pretrained = tmp_path / "clean"
    small = dict(epochs=1, threads=1, output=str(pretrained), mixed_precision="no")
    data = replace(config.data, image_size=32, batch_size=4, workers=0, val_size=4)
    evaluation = replace(config.evaluation, autoattack_images=4, batch_size=4)
    config = replace(config, data=data, evaluation=evaluation, **small)
    network = ModelConfig(name="test_resnet")
    train(replace(config, model=network, evaluation=replace(evaluation, attacks=("clean",))))
    forget()
    start = ModelConfig(name=str(pretrained), pretrained=True)
    (results,) = train(replace(config, model=start, output=str(tmp_path / "run"), mixed_precision="bf16"))
    assert results.autoattack is not None and results.autoattack.n == 4 and results.eps == 4 / 255
