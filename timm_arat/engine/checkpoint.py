"""Checkpoints that survive a crash at any moment: written aside, synced, renamed; only then is an old one pruned."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

_NAME = re.compile(r"epoch-(\d{4})-step-(\d{6})$")


def save(accelerator: Accelerator, folder: Path, epoch: int, step: int, keep: int) -> Path:
    """Save everything `accelerator` was given into a folder of `folder`; call it on every process.

    Args:
        epoch: Epoch that training goes on with, from 0.
        step: Batches of that epoch that are done.
        keep: Newest checkpoints that stay.

    Raises:
        OSError: the disk is full or cannot be written; the earlier checkpoints are untouched.
    """
    final = folder / f"epoch-{epoch:04d}-step-{step:06d}"
    aside = folder / f".{final.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(aside), safe_serialization=True)
    except Exception as error:
        # safetensors and torch report a full disk each by a class of its own; ask the disk itself.
        if shutil.disk_usage(folder).free < 1 << 20 or getattr(error, "errno", None) == errno.ENOSPC:
            shutil.rmtree(aside, ignore_errors=True)
            raise OSError(errno.ENOSPC, f"no space for a checkpoint in {folder}") from None
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (aside / "position.json").write_text(json.dumps({"epoch": epoch, "step": step}))
        _sync(aside)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync_folder(folder)
        for old in _sorted(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def newest(folder: Path) -> Path | None:
    """The checkpoint that training would resume from, if there is one."""
    found = _sorted(folder)
    return found[-1] if found else None


def load(accelerator: Accelerator, checkpoint: Path) -> tuple[int, int]:
    """Restore what `save` saved; returns its epoch and step.

    Raises:
        ValueError: the checkpoint is damaged or belongs to another model, method or optimizer.
    """
    try:
        position = json.loads((checkpoint / "position.json").read_text())
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # every library under it has its own for a file that is not what it should be
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"checkpoint {checkpoint} cannot be resumed ({reason[:200]}): remove that folder to resume from the one "
            "before it, or start afresh with another --output"
        ) from error
    return position["epoch"], position["step"]


def _sorted(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("epoch-*") if _NAME.match(path.name))


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
