"""Section memory: the peak of a step, and how time and memory grow. Every number comes from a process of its own."""

import ctypes
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from timm_arat.attacks import PGD

from ._shapes import QUICK, Shape
from ._sides import Side, make_step
from ._step import STEPS

SIDES: tuple[Side, ...] = ("textbook", "ours")
MIB = 2**20


def measure(shapes: Mapping[str, Shape], say: Callable[[str], None]) -> dict[str, Any]:
    """`ratios`: our peak as a share of the textbook's, by shape; `checkpointing`: ours with it; `given_back`: with an
    allocator that returns what is freed at once; `growth`: of the first shape, along one axis each."""
    threads = torch.get_num_threads()
    peaks: dict[str, dict[str, float]] = {}
    ratios: dict[str, dict[str, float]] = {"ours": {}, "ours_checkpointing": {}, "given_back": {}}
    for key, shape in shapes.items():
        # Three attack steps: the peak does not grow with their number, see `growth`.
        held = {side: _alone(side, shape, 3, threads)["mib"] for side in (*SIDES, "ours_checkpointing")}
        back = {side: _alone(side, shape, 3, threads, give_back=True)["mib"] for side in SIDES}
        peaks[key] = held | {f"{side}_given_back": mib for side, mib in back.items()}
        for side in ("ours", "ours_checkpointing"):
            ratios[side][key] = round(held[side] / max(held["textbook"], 1e-3), 4)
        ratios["given_back"][key] = round(back["ours"] / max(back["textbook"], 1e-3), 4)
        say(
            f"memory {key}: {held['ours']:.0f} MiB, {ratios['ours'][key]:.2f} of the textbook's, "
            f"{ratios['ours_checkpointing'][key]:.2f} with checkpointing, {ratios['given_back'][key]:.2f} given back"
        )
    first = next(iter(shapes.values()))
    growth = {
        "batch": {
            n: {side: _alone(side, replace(first, batch=n), STEPS, threads) for side in SIDES}
            for n in (first.batch, 2 * first.batch, 4 * first.batch)
        },
        "steps": {n: {side: _alone(side, first, n, threads) for side in SIDES} for n in (1, 5, 10)},
        "processes": {n: _together(n, first, threads) for n in (1, 2)},
        "model": {
            key: {"parameters": sum(p.numel() for p in shape.build().parameters())} | _alone("ours", shape, 1, threads)
            for key, shape in shapes.items()
        },
    }
    means = {
        side: {"ratios": each, "geometric_mean": round(statistics.geometric_mean(each.values()), 4)}
        for side, each in ratios.items()
    }
    return {
        **means["ours"],
        "checkpointing": means["ours_checkpointing"],
        "given_back": means["given_back"],
        "mib": peaks,
        "growth": growth,
    }


def _alone(side: Side, shape: Shape, steps: int, threads: int, give_back: bool = False) -> dict[str, float]:
    return _in_processes(1, side, shape, steps, threads, give_back)[0]


def _together(processes: int, shape: Shape, threads: int) -> dict[str, float]:
    """Of processes that step at the same time: the sum of their memory, the slowest's seconds."""
    found = _in_processes(processes, "ours", shape, STEPS, threads)
    return {"mib": sum(each["mib"] for each in found), "seconds": max(each["seconds"] for each in found)}


def _in_processes(count: int, *args: Any) -> list[dict[str, float]]:
    # Forked from a server that has imported torch and run nothing: as clean as a new interpreter, without its seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        return [future.result() for future in [pool.submit(peak, *args) for _ in range(count)]]


def peak(side: Side, shape: Shape, steps: int, threads: int, give_back: bool = False) -> dict[str, float]:
    """MiB that two steps need beyond what the built model held, and seconds of the second."""
    torch.set_num_threads(threads)
    if give_back:
        _give_back_at_once()
    make_step(side, "arat", QUICK["resnet20_cifar"], PGD(steps=1))()  # torch's code is loaded now and not counted
    step = make_step(side, "arat", shape, PGD(steps=steps))
    before = _restart()
    step()
    begin = time.perf_counter()
    step()
    seconds = time.perf_counter() - begin
    return {"mib": round((_high_water() - before) / MIB, 2), "seconds": round(seconds, 6)}


def _give_back_at_once() -> None:
    """What is freed leaves the process (glibc: mallopt), so that the peak is of what a step holds.

    By default some of what was freed stays and does not fit what comes after: that is the peak which a run has.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, 2**16)


def _restart() -> int:
    """Bytes held now, from which the high-water mark starts again."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    return _high_water()


def _high_water() -> int:
    """The most bytes held at once."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # not ru_maxrss, which a process inherits from the one that started it
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
