"""What a run is expected to cost, as it lies in a comparison's folder. Free of torch; `predict` measures it."""

import hashlib
import json
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import dump
from ..engine.config import VARIANTS, TrainConfig

FILE = "prediction.json"


@dataclass
class Passes:
    """Passes of images through a network. One pass of N images counts N, here and there `per` image.

    Attributes:
        forward: Forward passes.
        backward: Backward passes, to the images alone (an attack's) or to the weights too: both count as one.
    """

    forward: float = 0.0
    backward: float = 0.0

    @property
    def cost(self) -> float:
        """Forward passes that take as long, by the usual convention: a forward pass is 1, a backward pass 2."""
        return self.forward + 2 * self.backward

    def per(self, images: int) -> "Passes":
        """The same for each of `images`."""
        return Passes(self.forward / images, self.backward / images)


@dataclass(frozen=True)
class Prediction:
    """What a run of a row is expected to cost here, alone on its share of the cores.

    Attributes:
        passes: Of a training step, an image; the mean over the epochs, whose attacks may differ.
        training: Seconds of all training steps.
        measuring: Seconds of validation and of the test at the end, roughly: AutoAttack's depend on the outcome.
        of: What it was measured for, a digest of settings and machine.
    """

    passes: Passes
    training: float
    measuring: float
    of: str

    @property
    def seconds(self) -> float:
        return self.training + self.measuring


def load(folder: Path) -> dict[str, Prediction]:
    """The predictions that lie in a comparison's folder, by row; none where nothing was measured."""
    path = folder / FILE
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text())
    return {name: Prediction(**{**row, "passes": Passes(**row["passes"])}) for name, row in rows.items()}


def digest(config: TrainConfig, threads: int) -> str:
    """Of what a prediction depends on, this machine included."""
    text = dump(replace(config, seed=0, output=None), variants=VARIANTS)
    return hashlib.sha256(f"{text} {threads} {platform.node()} {os.cpu_count()}".encode()).hexdigest()[:16]


def threads_of(config: TrainConfig, jobs: int) -> int:
    """CPU threads of one of `jobs` runs at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.threads or max(1, cores // jobs)
