"""Ctrl-C and SIGTERM as a wish that the loop grants at its next safe point."""

import os
import signal
from types import FrameType
from typing import Any


class Signals:
    """Inside the `with`, the first SIGINT or SIGTERM only sets `came`; a second one interrupts as usual.

    A launcher that is killed cannot tell its processes. They see that it is gone by their parent, which is then
    another; without a launcher the parent is a shell, which may well end before a training in the background.
    """

    def __init__(self) -> None:
        self.came = False
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # `accelerate launch` sets it
        self.launcher = os.getppid() if launched else None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def stop(self) -> bool:
        """Whether to stop at the next safe point: a signal came, or the launcher is gone."""
        return self.came or self.launcher not in (None, os.getppid())

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True


def ignore_signals(worker: int) -> None:
    """For a loader's worker: a signal to the whole group is answered by the process that trains, which needs it still.

    torch ends its workers itself, also where their parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
