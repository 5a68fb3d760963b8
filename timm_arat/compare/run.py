"""All runs of a comparison, several at a time: what is finished is kept, what was stopped goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..config import dump, leaves
from ..engine.config import TrainConfig
from ..engine.identity import OF_THE_PLACE
from ..engine.recipe import VARIANTS, read_recipe
from .config import Run
from .prediction import threads_of

RESULTS = ("results.json", "results_last.json")  # what a finished run has, of its best and its last weights
POLL = 0.2  # seconds


def finished(run: Run) -> bool:
    """Whether the run has been trained and measured."""
    return all((run.folder / name).is_file() for name in RESULTS)


def to_do(runs: Sequence[Run]) -> list[Run]:
    """Runs that are not finished, and those that they come after whose networks are not here, as after a clone."""
    left: list[Run] = []
    for run in reversed(runs):  # what a run comes after stands before it
        needed = any(run.name in other.after for other in left)
        if not finished(run) or (needed and not _network(run).is_dir()):
            left.append(run)
    return left[::-1]


def check_settings(runs: Sequence[Run]) -> None:
    """ValueError where a run's folder holds one with other settings: a table is of one protocol."""
    for run in runs:
        there = run.folder / "config.yaml"
        if not there.is_file():
            continue
        was, now = _settings(read_recipe(there)), _settings(run.config)
        differ = [f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in was if was[key] != now.get(key)]
        if differ or was.keys() != now.keys():
            raise ValueError(
                f"{run.folder} was run with other settings: {'; '.join(differ) or 'of another method'}. Name another "
                "--output, or remove that folder to run it anew"
            )


def run_all(runs: Sequence[Run], jobs: int, predicted: Mapping[str, float]) -> dict[str, str]:
    """Train every run that is not finished; the reasons of those that failed, by their names.

    Args:
        runs: Those that another one comes after are before it.
        jobs: Runs at a time.
        predicted: Seconds of a run by the name of its row, for the time left.

    Raises:
        KeyboardInterrupt: the command is to stop; every run has left a checkpoint, and the next call goes on.
    """
    waiting = to_do(runs)
    running: dict[str, tuple[Run, subprocess.Popen[bytes], float]] = {}
    failed: dict[str, str] = {}
    clock = _Clock(len(runs), len(runs) - len(waiting), jobs, predicted)
    try:
        while waiting or running:
            for run in list(waiting):
                if lost := [name for name in run.after if name in failed]:
                    failed[run.name] = f"{lost[0]}, which it comes after, failed"
                    waiting.remove(run)
                elif len(running) < jobs and not any(other.name in run.after for other in (*waiting, *_of(running))):
                    waiting.remove(run)
                    print(f"{run.name} begins; its log is {_beside(run, 'log')}", flush=True)
                    running[run.name] = (run, _start(run, jobs), time.monotonic())
            for name, (run, process, started) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[name]
                seconds = time.monotonic() - started
                if code or not finished(run):
                    failed[name] = _reason(run, code)
                else:
                    clock.took(run, seconds)
                outcome = f"failed: {failed[name]}" if name in failed else f"finished in {seconds / 60:.1f} min"
                print(f"{name} {outcome}; {clock.left(waiting, _of(running))}", flush=True)
            time.sleep(POLL)
    except KeyboardInterrupt:
        for _, process, _ in running.values():
            process.terminate()  # it leaves a checkpoint
        for _, process, _ in running.values():
            process.wait()
        raise
    return failed


class _Clock:
    """How much is done, and about when the rest is: predictions, corrected by what finished runs have taken."""

    def __init__(self, total: int, done: int, jobs: int, predicted: Mapping[str, float]) -> None:
        self.total, self.done, self.jobs, self.predicted = total, done, jobs, predicted
        self.seconds = self.expected = 0.0

    def took(self, run: Run, seconds: float) -> None:
        self.done += 1
        self.seconds += seconds
        self.expected += self.predicted.get(run.row, 0.0)

    def left(self, waiting: Sequence[Run], running: Sequence[Run]) -> str:
        """A running one counts half."""
        expected = sum(self.predicted.get(run.row, 0.0) for run in waiting)
        expected += sum(self.predicted.get(run.row, 0.0) for run in running) / 2
        ratio = self.seconds / self.expected if self.expected else 1.0
        return f"{self.done} of {self.total} runs done, about {expected * ratio / self.jobs / 3600:.1f} h left"


def _of(running: Mapping[str, tuple[Run, Any, float]]) -> list[Run]:
    return [run for run, _, _ in running.values()]


def _start(run: Run, jobs: int) -> "subprocess.Popen[bytes]":
    """The process of a run, which begins or goes on from its newest checkpoint."""
    run.folder.mkdir(parents=True, exist_ok=True)
    recipe = _beside(run, "yaml")
    recipe.write_text(dump(replace(run.config, output=None), variants=VARIANTS), encoding="utf-8")
    threads = threads_of(run.config, jobs)
    words = ["--config", str(recipe), "--output", str(run.folder), "--threads", str(threads)]
    if any((run.folder / "checkpoints").glob("epoch-*")):
        words += ["--resume", "true"]
    else:
        # Of an epoch without a checkpoint, or of a finished run whose network is not here: the numbers of two
        # trainings must not stand together in the table.
        for name in ("summary.jsonl", *RESULTS):
            (run.folder / name).unlink(missing_ok=True)
    with _beside(run, "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "timm_arat.compare.child", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C comes once, from here
        )


def _network(run: Run) -> Path:
    """The exported network, from which a run that comes after it begins or learns."""
    return run.folder / "model"


def _beside(run: Run, suffix: str) -> Path:
    return run.folder.with_name(f"{run.name}.{suffix}")


def _reason(run: Run, code: int) -> str:
    """The last line of its log, which is the message of an error."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = _beside(run, "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"ended with code {code}"


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What makes a result: neither where a run and its data lie, nor how it was read, shown and kept."""
    found = dict(leaves(yaml.safe_load(dump(replace(config, output=None, resume=False), variants=VARIANTS))))
    # A folder of images has no other name than where it lies.
    kept = {"data.root"} if config.data.name in ("folder", "torch/folder") else set()
    return {name: value for name, value in found.items() if name in kept or name not in OF_THE_PLACE}
