"""The checkpoints that a visitor may choose, and one of them opened."""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from ..attacks import PGD
from ..evaluation import eps_text
from ..evaluation._known import known
from ..evaluation.config import Norm
from ..hub import RobustRow, list_robust
from ..hub._curves import split_model
from ..hub._escape import inline
from ..models import WeightsNotFoundError, create, exported
from ..models._weights import AUX_NORM, fetch
from ..names import nearest
from ..norm import is_split, merge_split_norm
from ..pixels import InPixels, in_pixels

KEPT = 2  # opened checkpoints that stay in memory
SHARE = 4  # the slider of eps ends at this multiple of the eps that the checkpoint was trained for
NAMED = 10  # classes that are named in a sentence


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        model: The timm model, with both branches of its norms where it has them.
        labels: Names of its K classes, each another.
        norm, eps: The threat that it was trained for; eps in pixels of [0, 1].
        about: Markdown: what a visitor should know of it.
        transform: Its own preprocessing without the normalisation, from a PIL image to CxHxW bytes.
    """

    name: str
    model: nn.Module
    labels: tuple[str, ...]
    norm: Norm
    eps: float
    about: str
    transform: Any

    @property
    def mode(self) -> str:
        """Pillow's mode of a picture for it."""
        cfg: Any = self.model.pretrained_cfg
        return "L" if cfg["input_size"][0] == 1 else "RGB"

    @property
    def has_dial(self) -> bool:
        """Whether there is a clean branch to mix in."""
        return is_split(self.model)

    @property
    def levels(self) -> int:
        """What a visitor counts eps in: 255 grey levels for linf, else whole pixels (1)."""
        return 255 if self.norm == "linf" else 1

    @property
    def max_eps(self) -> float:
        """The largest eps on offer, in pixels of [0, 1]."""
        return min(SHARE * self.eps, 254 / 255) if self.norm == "linf" else SHARE * self.eps

    def deployed(self, mix: float) -> InPixels:
        """A plain model in eval mode with the share `mix` in [0, 1] of the clean branch; it takes images in [0, 1].

        Raises:
            ValueError: `mix` is out of its range, or above 0 without a clean branch.
        """
        if self.has_dial:
            return in_pixels(merge_split_norm(deepcopy(self.model), mix=mix)).eval()
        if mix:
            raise ValueError(f"{self.name} has one branch only, so there is nothing to mix: set the dial to 0")
        return in_pixels(self.model)


class Zoo:
    """The checkpoints of `list_robust`, and one more: the folder of a finished run or of an exported model.

    Attributes:
        names: What `open` takes.
        first: The one to begin with.

    Raises:
        ValueError: `model` is neither one of the checkpoints nor a folder, or there is none at all.
    """

    def __init__(self, model: str | None = None) -> None:
        self._rows = {row.name: row for row in list_robust()}
        self.names = list(self._rows)
        if model and model not in self._rows:
            if not _folder(model).is_dir():
                raise ValueError(
                    f"{model} is neither a checkpoint that loads here nor a folder: {nearest(model, self.names)} "
                    "timm_arat.list_robust() lists them; a folder is that of a finished run or of an exported model"
                )
            self.names.insert(0, model)
        if not self.names:
            raise ValueError("no checkpoint loads here: give --model the folder of a finished run or an exported model")
        self.first = model or self.names[0]
        self._open = lru_cache(maxsize=KEPT)(self._load)

    def open(self, name: str) -> Checkpoint:
        """The checkpoint `name`; the last few that were opened stay in memory.

        Raises:
            ValueError: it is none of `names`, or its files do not make a model.
            OSError: its weights could not be had.
        """
        if name not in self.names:  # whoever speaks to the page's server may ask for anything
            raise ValueError(f"{name!r} is not on offer: choose one of {', '.join(self.names)}")
        return self._open(name)

    def _load(self, name: str) -> Checkpoint:
        row = self._rows.get(name)
        if row is not None:
            model, about = _by_name(name), _numbers(row)
            threat = PGD(norm=row.norm, eps=row.eps)
        else:
            model, about, own = _by_folder(name), "A model of your own.", known(name)
            threat = PGD(norm=own.norm or "linf", eps=own.eps)
        config = resolve_model_data_config(model)
        if config["input_size"][0] not in (1, 3):
            raise ValueError(
                f"{name} takes images of {config['input_size'][0]} channels, and a picture has 1 (grey) or 3 (colours)"
            )
        labels = class_names(model)
        return Checkpoint(
            name=name,
            model=model.to("cuda" if torch.cuda.is_available() else "cpu").eval(),
            labels=labels,
            norm=threat.norm,
            eps=threat.radius,
            about=f"{about} It takes any picture for one of its {len(labels)} classes: {_some(labels)}.",
            transform=create_transform(**config, normalize=False),
        )


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the model's classes for a person, each another; numbers where it does not name them."""
    cfg: Any = model.pretrained_cfg
    names = list(cfg.get("label_names") or ())
    described = cfg.get("label_descriptions") or {}
    if names:
        names = [str(described.get(name, name)) for name in names]
    elif subset := infer_imagenet_subset(model):
        info = ImageNetInfo(subset)
        # Of a row of synonyms, such as "tench, Tinca tinca", the first.
        names = [info.index_to_description(index).split(",")[0] for index in range(info.num_classes())]
    else:
        names = [f"class {index}" for index in range(cfg["num_classes"])]
    seen = Counter(names)
    return tuple(name if seen[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))


def _by_name(name: str) -> nn.Module:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None, "list_robust lists registered names only"
    try:
        fetch(cfg, name, AUX_NORM)
    except WeightsNotFoundError:
        return timm.create_model(name, pretrained=True)
    return timm.create_model(name, pretrained=True, split_norm=True)


def _by_folder(name: str) -> nn.Module:
    folder = exported(_folder(name)) or _folder(name)
    return split_model(folder) if (folder / AUX_NORM).is_file() else create(f"local-dir:{folder}", pretrained=True)


def _folder(name: str) -> Path:
    return Path(name.removeprefix("local-dir:"))


def _numbers(row: RobustRow) -> str:
    measured = [f"{100 * row.clean:.1f} % right on clean ones"] if row.clean is not None else []
    if row.autoattack is not None:
        measured.append(f"{100 * row.autoattack:.1f} % under AutoAttack at {row.norm} {eps_text(row.eps)} (n={row.n})")
    return f"Measured on test images of {inline(row.data)}: {', '.join(measured) or 'nothing yet'}."


def _some(labels: tuple[str, ...]) -> str:
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return inline(", ".join(labels[:NAMED])) + more
