"""What a checkpoint is of, so that nothing else goes on from it."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from ..config import dump, leaves
from .config import TrainConfig
from .recipe import VARIANTS

if TYPE_CHECKING:
    from .session import Session

# Settings that a resumed run may have another value of: they take effect from there on, and nothing that was done under
# the former one becomes wrong. Groups end in a dot.
OF_THE_PLACE = (  # of these, those that are of the machine and make no other result
    "output", "resume", "threads", "log_every", "trackers", "checkpoint_minutes", "keep_checkpoints", "data.root",
    "data.download", "data.workers", "data.cache",
)  # fmt: skip
MAY_CHANGE = ("epochs", "evaluation.", "analysis.", "twin.", "twin", "compile", "half", *OF_THE_PLACE)


def identity(session: "Session") -> dict[str, Any]:
    """The settings that may not change, the images behind them, precision and number of processes; as JSON holds it."""
    return {
        "settings": _settings(session.config),
        "training_images": _digest(session.data.train),
        "validation_images": _digest(session.data.val),
        "processes": session.accelerator.num_processes,
        "precision": session.accelerator.mixed_precision,  # what `auto` has become
    }


def check_identity(there: Mapping[str, Any], here: Mapping[str, Any], config: TrainConfig) -> None:
    """ValueError, naming what differs, unless the run that left `there` may go on as `here`, the identity of `config`.

    A setting that the checkpoint does not know, because it is of a version before it, counts as its default: that is
    what a version without it did.
    """
    defaults = _settings(TrainConfig(method=type(config.method)()))
    now = here["settings"]
    was = {key: defaults[key] for key in now.keys() & defaults.keys()} | there["settings"]
    differ = [
        f"{key} was {was.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]
    differ += [
        f"the {key.replace('_', ' ')}: {there[key]} then, {here[key]} now"
        for key in ("training_images", "validation_images", "processes", "precision")
        if there.get(key, here[key]) != here[key]
    ]
    if differ:
        raise ValueError(
            f"it is of another run: {'; '.join(differ)}. Go on with what it was, or start anew with another --output. "
            f"May change: {', '.join(dict.fromkeys(name.rstrip('.') for name in MAY_CHANGE))}"
        )


def _settings(config: TrainConfig) -> dict[str, Any]:
    every = leaves(yaml.safe_load(dump(config, variants=VARIANTS)))
    return {key: value for key, value in every if not _may_change(key)}


def _may_change(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in MAY_CHANGE)


def _digest(images: Any) -> str:
    """Number of the images, and a hash of their labels in their order."""
    if images is None:
        return "none"
    labels = images.labels.numpy().tobytes()
    return f"{len(images)} images ({hashlib.sha256(labels).hexdigest()[:12]})"
