"""Break a small run at random and look what is lost: `python -m benchmarks.faults --kills 100`.

Each trial trains ARAT for three epochs on the digits, with checkpoints as often as they can be, in a process that is
forked from this one; this one ends it at random times by SIGKILL or asks it to stop by SIGTERM, until it has finished,
and compares what is left with what an undisturbed run left. Then bits of a checkpoint are flipped, one at a time.
The numbers go into docs/reliability.md, and with every failure its seed is printed.
"""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

from timm_arat import PGD
from timm_arat.config import cli, read
from timm_arat.data import DataConfig
from timm_arat.engine import checkpoint
from timm_arat.engine.config import ModelConfig, OptimizerConfig, TrainConfig, ValidationConfig
from timm_arat.engine.train import train
from timm_arat.evaluation import EvaluationConfig
from timm_arat.files import read_rows

from .document import check_block, write_block

SECONDS = ("seconds", "images_per_second")  # of a row, which are another run's own


@dataclass(frozen=True)
class Options:
    """How often to break it.

    Attributes:
        kills: Trials that are ended by SIGKILL, as often as it takes them to finish.
        stops: Likewise by SIGTERM.
        flips: Bits of a checkpoint that are flipped.
        seed: Of all times and places.
        into: The Markdown document; its JSON lies beside it.
    """

    kills: int = 100
    stops: int = 20
    flips: int = 200
    seed: int = 0
    into: str = "docs/reliability.md"


def config(folder: Path) -> TrainConfig:
    """Some seconds of training, whose best epoch is not its last."""
    return TrainConfig(
        data=DataConfig(name="digits", in_chans=1, image_size=8, val_size=100, batch_size=128),
        model=ModelConfig(name="resnet20_cifar", kwargs={"layers": [1, 1], "channels": [8, 16]}),
        attack=PGD(eps=0.1, steps=1),
        optimizer=OptimizerConfig(lr=0.2),
        validation=ValidationConfig(steps=2),
        evaluation=EvaluationConfig(attacks=("clean",), batch_size=200),
        epochs=3,
        threads=1,
        mixed_precision="no",
        checkpoint_minutes=0.0,
        output=str(folder),
    )


def left(folder: Path) -> dict[str, object]:
    """What a finished run leaves, but for its times."""
    rows = [{key: row[key] for key in row if key not in SECONDS} for row in read_rows(folder / "summary.jsonl")]
    weights = {name: load_file(folder / "weights" / f"{name}.safetensors") for name in ("best", "last")}
    exported = {"model": load_file(folder / "model" / "model.safetensors")}
    return {"rows": rows, **{k: {n: t.tolist() for n, t in each.items()} for k, each in (weights | exported).items()}}


def trained(folder: Path) -> int:
    """Start or resume the run in a forked process, whose number this gives; its output goes to a log beside it."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        train(replace(config(folder), resume=checkpoint.newest(folder / "checkpoints") is not None))
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(status)


def disturbed(folder: Path, number: int, seconds: float, draw: random.Random) -> int:
    """Run to the end, ended by signal `number` at random times on the way; returns how often it was."""
    times = 0
    while True:
        child = trained(folder)
        # Later and later, so that it comes to its end.
        deadline = time.monotonic() + draw.uniform(0, seconds * (0.6 + 0.2 * times))
        status = None
        while status is None:
            done, code = os.waitpid(child, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() > deadline:
                os.kill(child, number)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                times += 1
            else:
                time.sleep(0.005)
        if status == 0 and (folder / "results.json").exists():
            return times
        if not (folder / "checkpoints").exists() or checkpoint.newest(folder / "checkpoints") is None:
            shutil.rmtree(folder, ignore_errors=True)  # nothing to go on with yet: begin anew, as its message says
        if times > 50:
            raise RuntimeError(f"{folder} does not finish")


def flipped(newest: Path, draw: random.Random) -> bool:
    """Whether a flipped bit of a random file of the checkpoint is refused; the bit is put back."""
    path = draw.choice(sorted(file for file in newest.rglob("*") if file.is_file()))
    content = bytearray(path.read_bytes())
    place = draw.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    try:
        checkpoint.verified(newest)
        return False
    except ValueError as error:
        return newest.name in str(error)
    finally:
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)


@cli
def main() -> None:
    """Break it, and write what was lost."""
    options = read(Options, variants={}, prog="python -m benchmarks.faults", description="What is lost by faults.")
    document = Path(options.into)
    check_block(document, "faults")
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    found = {
        "seed": options.seed,
        "kills": 0,
        "kill_trials": 0,
        "stops": 0,
        "stop_trials": 0,
        "kill_lost": 0,
        "stop_lost": 0,
    }
    with TemporaryDirectory() as name:
        root = Path(name)
        began = time.monotonic()
        os.waitpid(trained(root / "whole"), 0)
        seconds, wanted = time.monotonic() - began, left(root / "whole")
        for kind, number, trials in (("kill", signal.SIGKILL, options.kills), ("stop", signal.SIGTERM, options.stops)):
            for trial in range(trials):
                folder = root / f"{kind}-{trial}"
                found[f"{kind}s"] += disturbed(folder, number, seconds, draw)
                found[f"{kind}_trials"] += 1
                if left(folder) != wanted:
                    found[f"{kind}_lost"] += 1
                    print(f"{kind} trial {trial} of seed {options.seed} differs", flush=True)
                shutil.rmtree(folder)
        newest = checkpoint.newest(root / "whole" / "checkpoints")
        assert newest is not None
        refused = sum(flipped(newest, draw) for _ in range(options.flips))
    found |= {"flips": options.flips, "flips_unnoticed": options.flips - refused}
    document.with_name("reliability.json").write_text(json.dumps(found, indent=1) + "\n")
    write_block(document, "faults", table(found))
    print(f"{document}: {found}")


def table(found: dict[str, int]) -> list[str]:
    """Markdown of the JSON."""
    return [
        "| what was done | how often | trials | lost |",
        "|---|---|---|---|",
        f"| SIGKILL at random times of a run of three epochs, resumed | {found['kills']} | {found['kill_trials']} "
        f"| {found['kill_lost']} |",
        f"| SIGTERM likewise | {found['stops']} | {found['stop_trials']} | {found['stop_lost']} |",
        f"| one bit flipped in a random file of a checkpoint | {found['flips']} | {found['flips']} | "
        f"{found['flips_unnoticed']} unnoticed |",
    ]


if __name__ == "__main__":
    main()
