"""Ctrl-C, SIGTERM and a launcher's end as a wish that the loop grants at its next safe point."""

import os
import signal
from types import FrameType
from typing import Any


class Launcher:
    """What `accelerate launch` is to a process that it started.

    A launcher that is killed cannot tell its processes. They see that it is gone by their parent, which is then
    another; without a launcher the parent is a shell, which may well end before a training in the background.
    """

    def __init__(self) -> None:
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # `accelerate launch` sets it
        self._parent = os.getppid() if launched else None

    @property
    def gone(self) -> bool:
        """Whether there was a launcher when this object was made, and is no longer."""
        return self._parent not in (None, os.getppid())


class Signals:
    """Inside the `with`, the first SIGINT or SIGTERM only sets `came`; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.came = False
        self._launcher = Launcher()
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
        return self.came or self._launcher.gone

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
