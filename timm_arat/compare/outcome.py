"""What a comparison's runs came to: a row's accuracies and costs over its seeds, and what they are told by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.best import Select, best_epoch, score
from ..engine.costs import Passes
from ..engine.recipe import read_recipe
from ..evaluation import Paired, Robustness, Score, compare
from ..files import read_rows
from . import progress

ATTACKS = {"clean": "clean", "pgd": "PGD-20", "autoattack": "AutoAttack"}
HELD_OUT = "held_out"
COSTS = {"minutes": "minutes", "processor_minutes": "processor minutes", "memory_mib": "memory, MiB"}


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Attributes:
        result: Of the weights that were best on the held-out training images.
        minutes: Of all training steps, by the clock.
        processor_minutes: Of all training steps, over all threads; None of runs that did not note it.
        memory_mib: Peak of memory up to the end of training; likewise.
        held_out: Clean accuracy and that under validation's attack together, in %, of the same weights on the held-out
            images; None of runs without them.
        rows: Of its summary.jsonl, an epoch each.
    """

    seed: int
    result: Robustness
    minutes: float
    processor_minutes: float | None = None
    memory_mib: float | None = None
    held_out: float | None = None
    rows: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def load(folder: Path, seed: int) -> "Outcome":
        """ValueError or FileNotFoundError, naming the file, if the folder is not that of a finished run."""
        rows = read_rows(folder / "summary.jsonl")
        processor: list[Any] = [row.get("processor_seconds") for row in rows]
        memory: list[Any] = [row.get("peak_memory_mib") for row in rows]
        return Outcome(
            seed,
            Robustness.load(folder / "results.json"),
            sum(row["seconds"] for row in rows) / 60,
            None if None in processor else sum(processor) / 60,
            None if None in memory else max(memory),
            _held_out(rows, read_recipe(folder / "config.yaml").validation.select),
            tuple(rows),
        )


@dataclass(frozen=True)
class Line:
    """A row of the table: its runs in the order of the seeds, and why others failed or are missing."""

    name: str
    outcomes: tuple[Outcome, ...]
    passes: Passes | None = None
    notes: tuple[str, ...] = ()

    def values(self, what: str) -> list[float]:
        """Of each run that has it: an accuracy in %, or a cost."""
        if what in (HELD_OUT, *COSTS):
            found = [getattr(each, what) for each in self.outcomes]
        else:
            found = [percent(getattr(each.result, what)) for each in self.outcomes]
        return [value for value in found if value is not None]


def strongest(lines: Sequence[Line]) -> str | None:
    """The strongest attack of the protocol by its name in `ATTACKS`; None where the test images were not attacked."""
    results = [each.result for line in lines for each in line.outcomes]
    if not results:
        return "autoattack"
    return next((what for what in ("autoattack", "pgd") if any(getattr(each, what) for each in results)), None)


def clock(lines: Sequence[Line]) -> str:
    """The cost in `COSTS` that time is told by: the processor's on a CPU; on a GPU, for which it waits, the clock's."""
    gpu = any(not each.result.device.endswith("cpu") for line in lines for each in line.outcomes)
    return "minutes" if gpu else "processor_minutes"


def curves(lines: Sequence[Line]) -> dict[str, list[progress.Curve]]:
    """Of each row, held-out accuracy against time of every run that has both."""
    seconds = clock(lines).replace("minutes", "seconds")
    found = {line.name: [progress.curve(each.rows, seconds) for each in line.outcomes] for line in lines}
    return {name: some for name, runs in found.items() if (some := [run for run in runs if run])}


def sums(line: Line, robust: str | None) -> list[float]:
    """Clean accuracy and that under the attack `robust` together, in %, of each run that has both."""
    if robust is None:
        return []
    pairs = [(percent(each.result.clean), percent(getattr(each.result, robust))) for each in line.outcomes]
    return [clean + under for clean, under in pairs if clean is not None and under is not None]


def against(line: Line, reference: Line) -> dict[int, dict[str, Paired]]:
    """McNemar's comparison with the reference on the same images, by seed and attack, where both have that seed.

    Seeds are not pooled: their images are the same, so that the pooled counts would not be independent.
    """
    others = {each.seed: each.result for each in reference.outcomes}
    if line.name == reference.name:
        return {}
    return {each.seed: compare(each.result, others[each.seed]) for each in line.outcomes if each.seed in others}


def percent(score: Score | None) -> float | None:
    """None of what was not measured, or of no image."""
    return None if score is None or math.isnan(score.accuracy) else 100 * score.accuracy


def _held_out(rows: Sequence[Mapping[str, Any]], select: Select) -> float | None:
    best = best_epoch(rows, select)
    (row,) = [row for row in rows if row["epoch"] == best]
    return 100 * score(row, "sum") if "val_robust" in row else None
