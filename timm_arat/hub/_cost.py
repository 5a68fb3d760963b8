"""What a training took, in words: its own epochs and time, and whose weights went into it."""

from pathlib import Path
from typing import Any

from ..files import read_rows
from ..models._json import read_config
from ._escape import inline


def seconds_of(summary: Path) -> float:
    """What a run's epochs took by the clock, from its summary.jsonl."""
    return float(sum(row["seconds"] for row in read_rows(summary)))


def before(training: dict[str, Any]) -> dict[str, float] | None:
    """Epochs and seconds of the runs, one after another, that led to the weights which `training` started from.

    None where these are no run's, or where its folder is not here.
    """
    run = Path(str(training.get("started_from")))
    summary, config = run / "summary.jsonl", run / "model" / "config.json"
    if not (summary.is_file() and config.is_file()):
        return None
    its = read_config(config).get("training", {})
    # Of a published checkpoint that is gone on with, what its card knows; else by its run, where that is here.
    earlier = its.get("before") or before(its) or {"epochs": 0, "seconds": 0.0}
    return {
        "epochs": earlier["epochs"] + len(read_rows(summary)),
        "seconds": earlier["seconds"] + seconds_of(summary),
    }


def cost(training: dict[str, Any], seconds: float) -> str:
    """Epochs, seed, time by the clock, and what it took of the machine where the run noted that."""
    took = f"{_epochs(training['epochs'])}, seed {training['seed']}, {_time(seconds)}"
    if "threads" not in training:
        return took
    hours = seconds / 3600 * training["processes"] * (1 if training["device"] != "cpu" else training["threads"])
    return f"{took}, {hours:.1f} {'core' if training['device'] == 'cpu' else 'GPU'} hours"


def sources(training: dict[str, Any]) -> str:
    """Whose weights went into it, as sentences that follow others."""
    said = ""
    if source := training.get("started_from"):
        earlier = training.get("before")
        took = f", which took {_epochs(earlier['epochs'])}, {_time(earlier['seconds'])}" if earlier else ""
        said += f" It started from the weights of {inline(str(source))}{took}."
    if teacher := training.get("teacher"):
        said += f" Its teacher was {inline(str(teacher))}."
    return said


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number > 1)}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
