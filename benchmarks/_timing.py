"""Sides in turn, several rounds, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Sides = Mapping[str, Callable[[], object]]
Seconds = dict[str, list[float]]


def in_turn(sides: Sides, rounds: int) -> Seconds:
    """Seconds of each side in each round, after a run of each that is not counted; every other round runs backwards."""
    for run in sides.values():
        run()
    seconds: Seconds = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(_seconds(sides[name]))
    return seconds


def _seconds(run: Callable[[], object]) -> float:
    _wait()
    begin = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - begin


def _wait() -> None:
    """Until the device has done what was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: Seconds, slow: str, fast: str) -> dict[str, float]:
    """How many times longer `slow` takes than `fast`: the median over rounds, each paired, and the extremes."""
    each = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": round(statistics.median(each), 4), "low": round(min(each), 4), "high": round(max(each), 4)}


def medians(seconds: Seconds) -> dict[str, float]:
    """Median seconds of each side."""
    return {name: round(statistics.median(each), 6) for name, each in seconds.items()}


def summary(ratios: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """By shape: the median ratios, their spread, and the geometric mean over shapes."""
    middle = {shape: each["median"] for shape, each in ratios.items()}
    return {
        "ratios": middle,
        "spread": {shape: [each["low"], each["high"]] for shape, each in ratios.items()},
        "geometric_mean": round(statistics.geometric_mean(middle.values()), 4) if middle else None,
    }
