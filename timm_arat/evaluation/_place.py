"""Where the command writes a result: beside one of another data set or threat, and never over a stronger one."""

import re
from pathlib import Path

from timm_arat.data import DataConfig
from timm_arat.evaluation._robustness import Robustness, eps_text
from timm_arat.models._weights import RECORD


def place(model: str, data: DataConfig, norm: str, eps: float, *, output: str | None, other: bool) -> Path:
    """The file for this evaluation: results.json in a run's folder, MODEL.results.json here, or `output`.

    `other`: of another data set or threat than the model was made for; that, or one than the file there has, goes into
    a file of its own, named by both.

    Raises:
        ValueError: the file there is no result.
    """
    path = Path(output) if output else beside(model, "results.json")
    old = load_old(path)
    name = _name(data)
    if old is not None and (old.data.name, old.norm) == (name, norm) and abs(old.eps - eps) < 1e-9:
        return path
    if old is None and not (other and output is None):
        return path
    words = (called(data), norm, eps_text(eps).replace("/", "_"))
    return path.with_name("-".join([path.stem, *words]) + ".json")


def called(data: DataConfig) -> str:
    """The data set in a file's name."""
    name = _name(data)
    return re.sub(r"[^\w.]+", "_", Path(name).name or name)


def _name(data: DataConfig) -> str:
    return data.root if data.name == "folder" and data.root else data.name


def save(result: Robustness, path: Path) -> Path:
    """Write `result` to `path`, or beside it if the result there is a stronger one; returns where it went."""
    old = load_old(path)
    if old is not None and _is_stronger(old, result):
        attack = next(name for name in ("autoattack", "pgd", "clean") if getattr(result, name))
        path = path.with_name(f"{path.stem}-{attack}-{getattr(result, attack).n}.json")
    result.save(path)
    return path


def load_old(path: Path) -> Robustness | None:
    """The result in the file `path`, None if there is no such file; ValueError if it is something else."""
    if not path.exists():
        return None
    try:
        return Robustness.load(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is there and is no result, so it is not replaced: move it, or give --output"
        ) from error


def _is_stronger(old: Robustness, new: Robustness) -> bool:
    """Whether one of the three accuracies stands on more images in `old`, or stands only there."""
    pairs = [(getattr(old, name), getattr(new, name)) for name in ("clean", "pgd", "autoattack")]
    return any(before and (after is None or before.n > after.n) for before, after in pairs)


def beside(model: str, name: str) -> Path:
    """`name` in a run's folder, else MODEL.name here: a published checkpoint's card speaks of the files beside it."""
    folder = Path(model)
    if (folder / RECORD).is_file():
        return Path(f"{folder.resolve().name}.{name}")
    if folder.is_dir():
        return folder / name
    return Path(re.sub(r"[^\w.-]+", "_", model) + f".{name}")
