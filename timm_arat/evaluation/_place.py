"""Where the command writes a result: beside one of another data set or threat, and never over a stronger one."""

import re
from collections.abc import Sequence
from pathlib import Path

from timm_arat.data import DataConfig
from timm_arat.evaluation._robustness import Robustness, eps_text
from timm_arat.models._weights import RECORD


def place(
    model: str, data: DataConfig, norm: str, eps: float, *, output: str | None, other: bool, changed: Sequence[str] = ()
) -> Path:
    """The file for this evaluation: results.json in a run's folder, MODEL.results.json here, or `output`.

    `other`: of another data set or threat than the model was made for; that, or one than the file there has, goes into
    a file of its own, named by both. `changed`: fields of `data`, such as its split, that are others than the model's;
    the name says them, too.

    Raises:
        ValueError: the file there is no result.
    """
    path = Path(output) if output else beside(model, "results.json")
    old = load_old(path)
    name = _name(data)
    same = old is None or ((old.data.name, old.norm) == (name, norm) and abs(old.eps - eps) < 1e-9)
    if same and not (other and output is None):
        return path
    kept = [_in_a_name(f"{field}_{getattr(data, field)}") for field in changed if field != "name"]
    words = (called(data), *kept, norm, eps_text(eps).replace("/", "_"))
    return path.with_name("-".join([path.stem, *words]) + ".json")


def called(data: DataConfig) -> str:
    """The data set in a file's name."""
    name = _name(data)
    return _in_a_name(Path(name).name or name)


def _in_a_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text)


def _name(data: DataConfig) -> str:
    return data.root if data.name == "folder" and data.root else data.name


def save(result: Robustness, path: Path) -> Path:
    """Write `result` to `path`, or beside it if the result there is kept (`_is_kept`); returns where it went."""
    old = load_old(path)
    if old is not None and _is_kept(old, result):
        attack = next(name for name in ("autoattack", "pgd", "clean") if getattr(result, name))
        words = [attack, str(getattr(result, attack).n)]
        words += [f"seed{result.seed}"] * (result.seed != old.seed)
        words += ["fast" if result.fast else "exact"] * (result.fast != old.fast)
        if _images(old) != _images(result):
            words += [_in_a_name(result.data.split), result.data.fingerprint[:8]]
        return save(result, path.with_name("-".join([path.stem, *filter(None, words)]) + ".json"))
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


def _is_kept(old: Robustness, new: Robustness) -> bool:
    """Whether `new` must not replace `old`.

    It may where it is of the same data set's split, no accuracy stands on fewer images, and either one stands on more
    or both were measured with the same seed and folding and on the same pixels.
    """
    if _images(old) != _images(new):
        return True
    names = ("clean", "pgd", "autoattack")
    before, after = ([score.n if (score := getattr(each, name)) else 0 for name in names] for each in (old, new))
    alike = (old.seed, old.fast, old.data.fingerprint) == (new.seed, new.fast, new.data.fingerprint)
    return any(b > a for b, a in zip(before, after, strict=True)) or (before == after and not alike)


def _images(result: Robustness) -> tuple[str, str]:
    """The images that were chosen from."""
    return result.data.split, result.data.labels


def beside(model: str, name: str) -> Path:
    """`name` in a run's folder, beside the folder of an exported model, else MODEL.name here.

    Not in the exported folder, which is loaded and published whole; and of a published checkpoint here, since its card
    speaks of the files beside it.
    """
    folder = Path(model)
    if (folder / RECORD).is_file():
        return Path(f"{folder.resolve().name}.{name}")
    if (folder / "config.json").is_file() and not (folder / "config.yaml").is_file():
        return folder.parent / f"{folder.resolve().name}.{name}"
    if folder.is_dir():
        return folder / name
    return Path(re.sub(r"[^\w.-]+", "_", model) + f".{name}")
