"""The files of a checkpoint's folder, by name: nothing else is deleted, replaced or sent, and no link is followed."""

import os
import shutil
from pathlib import Path

from ..models._json import read_json
from ..models._weights import AUX_NORM, RECORD, WEIGHTS

TWIN = "twin.results.json"  # of the same backbone by another method
NAMES = (
    ".eval_results/timm_arat.yaml",
    "README.md",
    AUX_NORM,
    "classes.png",
    "command.txt",
    "config.json",
    "curves.json",
    "eps.png",
    "examples.png",
    "mix.png",
    WEIGHTS,
    "results.json",
    "summary.jsonl",
    "training.png",
    "training.yaml",
    TWIN,
)
MARK = ("config.json", "curves.json", "results.json")  # a repository with these was written by us


def files(folder: Path) -> list[str]:
    """Paths, in the repository, of what `folder` publishes.

    Raises:
        ValueError: one of them is a link, or no file.
    """
    found = [name for name in NAMES if os.path.lexists(folder / name)]
    for name in found:
        check_plain(folder, name)
    return found


def left_out(folder: Path) -> list[str]:
    """What else lies in `folder`: it stays where it is and is not sent."""
    parents = {Path(name).parts[0] for name in NAMES if "/" in name}
    known = {*NAMES, RECORD}
    found = []
    for path in sorted(folder.iterdir()):
        if path.name in parents and path.is_dir() and not path.is_symlink():
            found += [f"{path.name}/{inner.name}" for inner in sorted(path.iterdir())]
        else:
            found.append(path.name)
    return [name for name in found if name not in known]


def check_plain(folder: Path, name: str) -> Path:
    """`folder`/`name`; ValueError if it, or a folder on the way from `folder`, is a link, or if it is no file."""
    path = folder / name
    for part in (path, *(folder / parent for parent in Path(name).parents if str(parent) != ".")):
        if part.is_symlink():
            raise ValueError(f"{part} is a link, and links are not followed: put the file itself there, or remove it")
    if not path.is_file():
        raise ValueError(f"{path} is no file: move it away")
    return path


def check_free(folder: Path) -> None:
    """ValueError unless `folder` is missing, empty, or an assembled checkpoint, which may be replaced."""
    if folder.is_symlink():
        raise ValueError(
            f"{folder} is a link, and links are not followed: name the folder itself by --cards and --name"
        )
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name another folder by --cards and --name")
    if any(folder.iterdir()) and not is_ours(folder):
        raise ValueError(
            f"{folder} exists and was not written by this program (its {RECORD} and config.json would say so): nothing "
            "there is touched. Name another folder by --cards and --name, or move it away"
        )


def is_ours(folder: Path) -> bool:
    """Whether `folder` carries the mark of an assembled checkpoint: our hub.json and our config.json."""
    try:
        record = read_json(check_plain(folder, RECORD))
        config = read_json(check_plain(folder, "config.json"))
    except (ValueError, OSError):
        return False
    return isinstance(record.get("repo_id"), str) and {"architecture", "threat", "dataset"} <= config.keys()


def copy_files(folder: Path, aside: Path) -> None:
    """Copy the files of the checkpoint in `folder` into `aside`, a new folder."""
    for name in (*files(folder), RECORD):
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(check_plain(folder, name), aside / name)


def move_into(aside: Path, folder: Path) -> None:
    """Replace the files of a checkpoint in `folder` by those in `aside`; whatever else is in `folder` stays.

    hub.json comes last: a call that was interrupted leaves a folder that carries its mark and can be assembled again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = files(aside)
    for name in files(folder):
        if name not in fresh:
            (folder / name).unlink()
    for name in (*fresh, RECORD):
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(aside / name, folder / name)
