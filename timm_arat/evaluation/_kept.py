"""The adversarial images of finished batches, kept beside the journal, so that a resumed evaluation has them all."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import write_atomically
from ._autoattack import ATTACKS
from ._journal import Journal
from ._loop import Keep

STAGES = ("clean", "pgd", *ATTACKS)  # what a result stands on; the other attacks only check it


class Kept:
    """What each finished batch of `STAGES` left, by (stage, number): {"index", "prediction", "moved", "x_adv"}.

    index, prediction: N, where the batch's images are in the selection, and the model's answer to them after the
    attack. moved, x_adv: M and MxCxHxW, the images that the attack changed, and what it made of them.

    x: the selection's images, NxCxHxW. evaluation: a name for it, which every file says.
    With a journal in a file they lie in the folder that `beside` names, else in memory.

    Raises:
        ValueError: the journal has finished batches whose images are not there.
    """

    def __init__(self, journal: Journal, evaluation: str, x: Tensor) -> None:
        self.journal, self.evaluation, self.x = journal, evaluation, x
        self.folder = None if journal.path is None else beside(journal.path)
        self._memory: dict[tuple[str, int], dict[str, Tensor]] = {}
        missing = sum(not self._is_there(*key) for key in journal.finished if key[0] in STAGES)
        if missing:
            raise ValueError(
                f"{journal.path} was begun without save_adversarial, or {self.folder} was lost: the images of "
                f"{missing} finished batches are not there; delete both to begin anew, or leave save_adversarial out"
            )

    def among(self, which: Tensor) -> Keep:
        """What `run_attacks` calls where it runs on the images at `which` of the selection."""
        return lambda stage, number, batch, x_adv, prediction: self.put(stage, number, which[batch], x_adv, prediction)

    def put(self, stage: str, number: int, index: Tensor, x_adv: Tensor, prediction: Tensor) -> None:
        """Keep a batch, before the journal has it."""
        if stage not in STAGES:
            return
        moved = (x_adv != self.x[index]).flatten(1).any(1)
        batch = {"index": index, "prediction": prediction, "moved": index[moved], "x_adv": x_adv[moved].contiguous()}
        if self.folder is None:
            self._memory[stage, number] = batch
            return
        metadata = {"evaluation": self.evaluation}
        write_atomically(self._path(stage, number), lambda aside: save_file(batch, aside, metadata))

    def batches(self, stage: str) -> list[dict[str, Tensor]]:
        """All finished batches of a stage."""
        numbers = [number for name, number in self.journal.finished if name == stage]
        if self.folder is None:
            return [self._memory[stage, number] for number in numbers]
        return [load_file(self._path(stage, number)) for number in numbers]

    def _path(self, stage: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{stage}-{number}.safetensors"

    def _is_there(self, stage: str, number: int) -> bool:
        return metadata_of(self._path(stage, number)).get("evaluation") == self.evaluation


def beside(state: Path) -> Path:
    """The folder of the images that belong to the journal `state`."""
    return state.with_name(state.name + ".images")


def forget(state: Path) -> None:
    """Remove a journal that is no longer needed, with its images."""
    state.unlink()
    shutil.rmtree(beside(state), ignore_errors=True)


def hashed(identity: dict[str, Any]) -> str:
    """A name for the evaluation that a journal's first line describes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; none if there is no such file, or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}
