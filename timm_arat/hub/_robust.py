"""The robust checkpoints that load by name, with their numbers; every number is read from the folder's results.json."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from ..evaluation import Robustness, eps_text
from ..evaluation.config import Norm
from ..models import _weights
from ..models._json import read_config
from ..models._safetensors import num_weights

HEADER = ("name", "data", "threat", "clean", "AutoAttack", "n", "weights in M", "bytes", "where")


@dataclass(frozen=True)
class RobustRow:
    """One checkpoint.

    Attributes:
        name: For `timm.create_model(name, pretrained=True)`.
        clean, autoattack: Accuracy, a share of 1; None where it was not measured.
        n: Images behind the AutoAttack number.
        eps: Bound of the threat in pixels of [0, 1].
        norm: Its norm.
        data: What people call the data set.
        weights: Millions of numbers in the file, or None where it lies on the Hub.
        bytes: Size of the file, or None likewise.
        where: The file, or hf-hub:ORG/NAME@COMMIT.
    """

    name: str
    clean: float | None
    autoattack: float | None
    n: int
    eps: float
    norm: Norm
    data: str
    weights: float | None
    bytes: int | None
    where: str


class RobustList(tuple[RobustRow, ...]):
    """Rows of `list_robust`; printed, a table."""

    def __str__(self) -> str:
        rows = [HEADER, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def list_robust(data: str | None = None, norm: str | None = None) -> RobustList:
    """The checkpoints that `timm.create_model(name, pretrained=True)` loads, the most robust first for each data set.

    Args:
        data: Only those of this data set, by its name, its name on the Hub or as a tag spells it, such as cifar10.
        norm: Only those for this norm: linf, l2 or l1.
    """
    folders = sorted(path for path in _weights.CARDS.iterdir() if path.is_dir()) if _weights.CARDS.is_dir() else []
    found = [row for folder in folders if (row := _row(folder, data)) and norm in (None, row.norm)]
    return RobustList(sorted(found, key=lambda row: (row.data, row.norm, row.eps, -(row.autoattack or 0.0))))


def _row(folder: Path, data: str | None) -> RobustRow | None:
    source = _weights.published(folder.name)
    if not source:
        return None
    try:
        config = read_config(folder / "config.json")
        results = Robustness.load(folder / "results.json")
    except (ValueError, OSError) as error:
        warnings.warn(f"{folder.name} is not listed: {error}", stacklevel=3)
        return None
    dataset = config.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    called = str(dataset.get("name") or results.data.name)
    names = (called, str(dataset.get("id") or "").rpartition("/")[2], folder.name.partition(".")[2].partition("_")[0])
    if data is not None and _plain(data) not in map(_plain, names):
        return None
    file = Path(source["file"]) if "file" in source else None
    return RobustRow(
        name=folder.name,
        clean=results.clean.accuracy if results.clean else None,
        autoattack=results.autoattack.accuracy if results.autoattack else None,
        n=results.autoattack.n if results.autoattack else 0,
        eps=results.eps,
        norm=results.norm,
        data=called,
        weights=num_weights(file) / 1e6 if file else None,
        bytes=file.stat().st_size if file else None,
        where=str(file) if file else f"hf-hub:{source['hf_hub_id']}",
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _cells(row: RobustRow) -> tuple[str, ...]:
    shares = ("-" if share is None else f"{100 * share:.1f}" for share in (row.clean, row.autoattack))
    size = ("-", "-") if row.weights is None else (f"{row.weights:.2f}", f"{row.bytes:,}")
    return (row.name, row.data, f"{row.norm} {eps_text(row.eps)}", *shares, str(row.n), *size, row.where)
