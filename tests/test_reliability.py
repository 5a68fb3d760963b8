"""Nothing is lost: kills at every write of an epoch's end, other runs, numbers that are none, two runs at once."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from helpers_engine import DATA, forget, fresh_accelerate, same, session_of, tiny  # noqa: F401  # a fixture
from safetensors.torch import load_file

from benchmarks import faults
from timm_arat.engine import checkpoint, log, weights
from timm_arat.engine.accelerator import check_engine
from timm_arat.engine.config import ModelConfig, OptimizerConfig, ValidationConfig
from timm_arat.engine.lock import locked
from timm_arat.engine.loop import Interrupted, Loop
from timm_arat.engine.session import build_loader
from timm_arat.engine.train import train
from timm_arat.methods import StandardConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


TINY = "--evaluation.attacks [clean] --validation.steps 1 --attack.steps 1 --model.kwargs.channels [8,16]".split()


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def three(folder: Path, **changes):
    """Three epochs at a rate so high that the best is not the last."""
    return tiny(folder, method=StandardConfig(), epochs=3, optimizer=OptimizerConfig(lr=0.5), **changes)


def standard(folder: Path, **changes):
    """Two epochs of plain training, whose clean accuracy grows."""
    return tiny(
        folder, **{"method": StandardConfig(), "validation": ValidationConfig(steps=2, select="clean"), **changes}
    )


def left(folder: Path) -> dict[str, object]:
    """What a run leaves, but for its times."""
    rows = log.read_rows(folder / "summary.jsonl")
    kept = [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]
    return {"rows": kept} | {name: load_file(folder / "weights" / f"{name}.safetensors") for name in ("best", "last")}


def equal(a: dict[str, object], b: dict[str, object]) -> bool:
    return a["rows"] == b["rows"] and same(a["best"], b["best"]) and same(a["last"], b["last"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(three(folder))
    forget()
    return left(folder)


# In the order of an epoch's end: the row, the last weights, the best ones if they are, the checkpoint.
WRITES = [(log, "append_row"), (weights, "write_atomically"), (checkpoint, "put_in_place")]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("event", range(4, 8))
def test_a_kill_at_any_write_of_an_epochs_end_loses_nothing(undisturbed, tmp_path, monkeypatch, event, before):
    done = []

    def counted(write):
        def call(*args):
            if before and len(done) == event:
                raise Killed
            write(*args)
            done.append(write.__name__)
            if not before and len(done) == event + 1:
                raise Killed

        return call

    with monkeypatch.context() as patch:
        for module, name in WRITES:
            patch.setattr(module, name, counted(getattr(module, name)))
        with pytest.raises(Killed):
            train(three(tmp_path / "run"))
    forget()
    assert "put_in_place" in done, "killed before there was a checkpoint"
    train(three(tmp_path / "run", resume=True))
    assert equal(left(tmp_path / "run"), undisturbed)


def test_the_row_of_a_resumed_epoch_covers_the_whole_epoch(undisturbed, tmp_path, monkeypatch):
    def stop_in_the_middle(self, epoch, done):
        if (epoch, done) == (1, 5):
            self._save(epoch, done)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_checkpoint_if_due", stop_in_the_middle)
        with pytest.raises(Killed):
            train(three(tmp_path / "run"))
    forget()
    train(three(tmp_path / "run", resume=True))
    assert equal(left(tmp_path / "run"), undisturbed)


@pytest.fixture
def stopped(tmp_path) -> Path:
    """A finished run, which may be extended."""
    train(standard(tmp_path / "run"))
    forget()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(seed=1), "seed was 0 and is 1"),
        (dict(data=replace(DATA, batch_size=64)), "data.batch_size was 128 and is 64"),
        (dict(data=replace(DATA, val_size=90)), "data.val_size was 100 and is 90"),
        (dict(model=ModelConfig(name="test_resnet", kwargs={})), "model.name was"),
        (dict(optimizer=OptimizerConfig(lr=0.04)), "optimizer.lr was 0.05 and is 0.04"),
        (dict(validation=ValidationConfig(steps=1, select="clean")), "validation.steps was 2 and is 1"),
    ],
)
def test_what_may_not_change_is_refused_by_name_before_anything_is_written(stopped, changes, named):
    config = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != ".lock"}
    changed = standard(stopped, **{"epochs": 3, "resume": True, **changes})
    with pytest.raises(ValueError, match=named) as refused:
        train(changed)
    assert "remove" not in str(refused.value), "advice to delete a good checkpoint"
    after = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == config


def test_a_finished_run_is_extended_and_evaluated_anew(stopped):
    before = json.loads((stopped / "results.json").read_text())
    (result,) = train(standard(stopped, epochs=4, resume=True))
    rows = log.read_rows(stopped / "summary.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["lr"] > 0.001, "the schedule is that of the longer run"
    assert json.loads((stopped / "results.json").read_text())["weights"] == result.weights != before["weights"]
    forget()
    measured = replace(tiny(stopped).evaluation, attacks=("clean", "pgd"))
    (anew,) = train(standard(stopped, epochs=4, resume=True, evaluation=measured))
    assert anew.pgd is not None and anew.weights == result.weights


def test_a_run_is_not_shortened_below_what_is_trained_and_a_longer_schedule_is_said(stopped, capsys):
    recipe = (stopped / "config.yaml").read_text()
    with pytest.raises(ValueError, match="epochs=1: .* is trained for 2 epochs already; give at least 2"):
        train(standard(stopped, epochs=1, resume=True))
    assert (stopped / "config.yaml").read_text() == recipe
    forget()
    capsys.readouterr()
    train(standard(stopped, epochs=4, resume=True))
    assert "to 4 epochs in the place of 2: the cosine schedule is now over these" in capsys.readouterr().out


def test_nothing_to_resume_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds no checkpoint to resume from"):
        train(tiny(tmp_path / "run", resume=True))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="resume: of which run"):
        train(replace(tiny(tmp_path), output=None, resume=True))
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_run_that_could_not_begin(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="less than one batch"):
        train(tiny(tmp_path / "run", data=replace(DATA, batch_size=4096)))
    forget()
    # Without a GPU accelerate takes each process of a launcher for the only one.
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="began 2 processes, .*ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"):
        train(tiny(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_sigterm_in_the_evaluation_leaves_what_a_resume_goes_on_from(tmp_path, monkeypatch, capsys):
    from timm_arat.engine import finish
    from timm_arat.train import main

    def stopped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(finish, "evaluate", stopped)
        patch.setattr(
            sys, "argv", ["train.py", "--epochs", "1", "--twin", "null", "--output", str(tmp_path / "run"), *TINY]
        )
        with pytest.raises(SystemExit) as stop:
            main()
    signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 130
    assert (
        f"stopped; `accelerate launch recipes/train.py --resume {tmp_path / 'run'}` goes on" in capsys.readouterr().out
    )


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_nothing_is_saved_of_a_training_that_ran_away(tmp_path, monkeypatch, what):
    step = Loop._step

    def broken(self, *args):
        terms = step(self, *args)
        if len(self.log.rows()) == 1:  # in the second epoch
            if what == "loss":
                terms["loss"] = terms["loss"] * torch.nan
            else:
                next(self.method.parameters()).data[0] = torch.inf
        return terms

    monkeypatch.setattr(Loop, "_step", broken)
    config = tiny(tmp_path / "run", method=StandardConfig(), epochs=3, log_every=1000)
    with pytest.raises(ValueError, match="not finite.*a checkpoint of before"):
        train(config)
    forget()
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values() if value.is_floating_point()), path
    monkeypatch.undo()
    train(replace(config, resume=True))


def hold(folder: Path, ready, done) -> None:
    with locked(folder, main=True):
        ready.set()
        done.wait(60)


def test_a_folder_that_is_being_trained_is_refused_until_its_process_is_gone(stopped):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(stopped, ready, done))
    process.start()
    assert ready.wait(120)
    with pytest.raises(ValueError, match=f"is being trained by process {process.pid}"):
        train(standard(stopped, epochs=3, resume=True))
    forget()
    process.kill()
    process.join()
    train(standard(stopped, epochs=3, resume=True))


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = time.strftime  # it is everybody's: what is imported meanwhile asks it for times of its own
    monkeypatch.setattr(time, "strftime", lambda form, *when: real(form, *when) if when else "20260101-000000")
    for _ in range(2):
        train(replace(tiny(tmp_path, method=StandardConfig(), epochs=1), output=None))
        forget()
    assert sorted(os.listdir("runs")) == [
        "20260101-000000-standard-resnet20_cifar", "20260101-000000-standard-resnet20_cifar-2",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"])
def test_engines_that_share_out_the_weights_are_refused(kind):
    with pytest.raises(ValueError, match=f"train by {kind}, which is not supported: .*--multi_gpu"):
        check_engine(DistributedType(kind))
    check_engine(DistributedType.MULTI_GPU)


def test_a_last_batch_that_some_processes_would_wait_for_is_refused(tmp_path):
    """Digits: 1,337 training images are 11 batches of 128, the last of them smaller."""
    session = session_of(tiny(tmp_path))
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    config = tiny(tmp_path, data=replace(DATA, drop_last=False))
    with pytest.raises(ValueError, match="leaves 11 batches, which 2 processes cannot share evenly"):
        build_loader(config, session.images, two)
    assert len(build_loader(tiny(tmp_path), session.images, two)) == 10


def test_a_flip_at_random_is_noticed_and_put_back(stopped):
    """What `benchmarks/faults.py` does two hundred times."""
    newest = checkpoint.newest(stopped / "checkpoints")
    before = {path: path.read_bytes() for path in newest.iterdir()}
    assert all(faults.flipped(newest, random.Random(seed)) for seed in range(20))
    assert before == {path: path.read_bytes() for path in newest.iterdir()}


def test_an_evaluation_whose_launcher_is_gone_is_given_up_and_goes_on_by_resume(tmp_path, monkeypatch):
    """It would otherwise hold the folder for hours, with nobody to see what it finds."""
    with monkeypatch.context() as patched:
        patched.setattr("timm_arat.evaluation._progress.LINE_SECONDS", 0)
        patched.setattr("timm_arat.engine.finish.Launcher", lambda: SimpleNamespace(gone=True))
        with pytest.raises(Interrupted):
            train(standard(tmp_path / "run"))
    assert not (tmp_path / "run/results.json").exists()
    forget()
    (result,) = train(standard(tmp_path / "run", resume=True))
    assert result.clean.n == 360
