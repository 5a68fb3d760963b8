"""What training costs, noted in each epoch's row of summary.jsonl, so that it survives whatever ends the process."""

import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from ..engine.companions import Companion
from ..engine.config import TrainConfig
from ..methods import Method

if TYPE_CHECKING:
    from ..engine.session import Session


class Cost(Companion):
    """Processor seconds of an epoch's steps, over all threads, and the peak of memory so far.

    The steps are attack, forward, backward and update; neither validation nor the test is among them, nor what an
    analysis measures at an epoch's end; what it compares within steps is. Memory is the GPU's where training runs on
    one, and else the process's, with Python and its libraries.
    """

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        self.before = 0.0
        self.started = self.now = time.process_time()

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        return True

    def begin(self, epoch: int, resumed: bool) -> None:
        if not resumed:
            self.before = 0.0
        self.started = self.now = time.process_time()

    def after_update(self, update: int, epoch: int) -> None:
        self.now = time.process_time()

    def row(self) -> dict[str, Any]:
        return {"processor_seconds": self._seconds(), "peak_memory_mib": peak_memory(self.accelerator.device)}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["seconds"]

    def _seconds(self) -> float:
        return self.before + self.now - self.started


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has held so far, in MiB: on a GPU by torch's tensors; nan on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float("nan")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10  # bytes there, KiB elsewhere
