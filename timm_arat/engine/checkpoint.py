"""Checkpoints that survive a crash at any moment: written aside, synced, renamed; only then is an old one pruned."""

import errno
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import generators
from ..files import put_in_place
from .identity import check_identity, identity
from .state import load_tree, save_tree

if TYPE_CHECKING:
    from .log import Log
    from .session import Session

FORMAT = "timm_arat.checkpoint/2"
MANIFEST = "manifest.json"
_NAME = re.compile(r"epoch-(\d{4})-step-(\d{6})$")


class Position(NamedTuple):
    """Where a training stands.

    Attributes:
        epoch: Epoch that training goes on with, from 0.
        step: Batches of that epoch that are done.
        best: Score of the best epoch so far, see `best.score`, whose weights are weights/best.safetensors; None before
            the first epoch has ended.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None


def room_for(session: "Session") -> int:
    """Bytes that the folder of `session` takes: checkpoints, one more while it is written, weights and export."""
    states = session.method.state_dict().values()
    weights = sum(t.numel() * t.element_size() for t in states)
    slots = 2 if "betas" in session.optimizer.defaults else 1  # averages that the optimizer keeps of each weight
    average = session.config.average.kind != "none"
    guarded = session.config.guard.every > 0  # which keeps weights and averages to go back to
    each = weights * ((1 + slots) * (1 + guarded) + average)
    train = session.data.train
    assert train is not None
    # A warm start keeps two files of float16. Without augmentation, which would draw from the training's generators.
    places = 2 * 2 * len(train) * train.plain()[0][0].numel() if session.images.grids else 0
    return each * (session.config.keep_checkpoints + 1) + 3 * weights + places


def check_room(session: "Session") -> None:
    """ValueError where the disk has no room for what a run leaves on it: before the first step, not after hours."""
    needed, free = room_for(session), shutil.disk_usage(session.folder).free
    held = sum(path.stat().st_size for path in session.folder.rglob("*") if path.is_file())  # of a run that goes on
    if needed > free + held:
        raise ValueError(
            f"the run keeps up to {needed / 1e9:.3g} GB in {session.folder}, where {free / 1e9:.3g} GB are free: free "
            "some, lower keep_checkpoints, or name an --output on another disk"
        )


def save(session: "Session", log: "Log", folder: Path, position: Position) -> Path:
    """Save `session`, which stands at `position`, into a folder of `folder`; call it on every process.

    Raises:
        OSError: the disk is full or cannot be written; the earlier checkpoints are untouched.
    """
    accelerator = session.accelerator
    final = folder / f"epoch-{position.epoch:04d}-step-{position.step:06d}"
    aside = folder / f".{final.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        save_tree(generators.states(), aside / f"generators-{accelerator.process_index}")
        if accelerator.is_main_process:
            save_tree({**_states(session), "log": log.state_dict()}, aside / "training")
    except Exception as error:
        # safetensors has a class of its own for what the disk says; ask the disk itself too.
        full = "No space" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        if full or shutil.disk_usage(folder).free < 1 << 20:
            shutil.rmtree(aside, ignore_errors=True)
            raise OSError(errno.ENOSPC, f"no space for a checkpoint in {folder}") from None
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {path.name: _sha256(path) for path in sorted(aside.iterdir())}
        manifest = {"format": FORMAT, "position": position._asdict(), "of": identity(session), "files": files}
        (aside / MANIFEST).write_text(json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1))
        put_in_place(aside, final)
        for old in _sorted(folder)[: -session.config.keep_checkpoints]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def newest(folder: Path) -> Path | None:
    """The checkpoint that training would resume from, if there is one."""
    found = _sorted(folder)
    return found[-1] if found else None


def load(session: "Session", log: "Log", checkpoint: Path) -> Position:
    """Restore what `save` saved; returns where it stands. All is checked before anything is restored.

    Raises:
        ValueError: the checkpoint is damaged, or of a run with other settings, images or processes.
    """
    manifest = verified(checkpoint)
    try:
        check_identity(manifest["of"], identity(session), session.config)
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint} cannot be resumed: {error}") from error
    try:
        states = load_tree(checkpoint / "training")
        _restore(session, states)
        log.load_state_dict(states["log"])
        generators.restore(load_tree(checkpoint / f"generators-{session.accelerator.process_index}"))
    except Exception as error:  # every library under it has its own for a file that is not what it should be
        raise _unusable(checkpoint, error) from error
    return Position(**manifest["position"])


def verified(checkpoint: Path) -> dict[str, Any]:
    """The manifest of `checkpoint`; ValueError unless it and every file are as they were written."""
    try:
        manifest = _manifest(checkpoint)
        for name, expected in manifest["files"].items():
            if not (checkpoint / name).is_file():
                raise ValueError(f"{name} is gone")
            if _sha256(checkpoint / name) != expected:
                raise ValueError(f"{name} is damaged: its sha256 is another than the manifest's")
        return manifest
    except (ValueError, OSError) as error:
        raise _unusable(checkpoint, error) from error


def _unusable(checkpoint: Path, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(
        f"checkpoint {checkpoint} cannot be resumed ({reason[:200]}): remove that folder to resume from the one before "
        "it, or start afresh with another --output"
    )


def _manifest(checkpoint: Path) -> dict[str, Any]:
    """What the manifest says, if it says what was written."""
    if not (checkpoint / MANIFEST).is_file():
        raise ValueError(f"{MANIFEST} is gone")
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
        expected = manifest.pop("sha256")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} is damaged: {error}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is of the format {manifest.get('format')!r}, and this version reads {FORMAT!r}")
    if _digest(manifest) != expected:
        raise ValueError(f"{MANIFEST} is damaged: its sha256 is another than it says")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _states(session: "Session") -> dict[str, Any]:
    scaler, plateau = session.accelerator.scaler, _plateau(session)
    return {
        "method": dict(session.method.state_dict()),
        "optimizer": session.optimizer.state_dict(),
        "schedule": plateau.state_dict() if plateau else {},
        "scaler": None if scaler is None else scaler.state_dict(),
        "companions": {type(each).__name__: each.state_dict() for each in session.companions},
    }


def _plateau(session: "Session") -> Any:
    """The schedule that remembers scores; the others are functions of time."""
    return getattr(session.schedule, "lr_scheduler", None)


def _restore(session: "Session", states: dict[str, Any]) -> None:
    session.method.load_state_dict(states["method"])
    session.optimizer.load_state_dict(states["optimizer"])
    if plateau := _plateau(session):
        plateau.load_state_dict(states["schedule"])
    if session.accelerator.scaler is not None and states["scaler"] is not None:
        session.accelerator.scaler.load_state_dict(states["scaler"])
    for companion in session.companions:
        state = states["companions"].get(type(companion).__name__)
        if state is not None:  # an analysis may be switched on later
            companion.load_state_dict(state)


def _sorted(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("epoch-*") if _NAME.match(path.name))


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
