"""What a model brings along: the data, preprocessing and threat that a run or a published checkpoint was made for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from timm_arat.data import DataConfig
from timm_arat.evaluation.config import Norm

PREPROCESSING = ("image_size", "in_chans", "crop_pct", "interpolation")
DATA_SET = ("root", "test_split", "input_key", "target_key", "num_classes", "download", "workers", "cache")
SAME = ("name", "test_split", "input_key", "target_key", *PREPROCESSING)  # what makes two test sets the same


@dataclass(frozen=True)
class Known:
    """data: fields of DataConfig by name. norm, eps: the threat. All empty for a model that nobody here trained."""

    data: dict[str, Any]
    norm: Norm | None = None
    eps: float | None = None

    def words(self, data_name: str) -> list[str]:
        """`data` as words of the command line. Of another data set than its own only the preprocessing is of use."""
        other = data_name and not _is_same_set(self.data.get("name", ""), data_name)
        wanted = PREPROCESSING if other else ("name", *DATA_SET, *PREPROCESSING)
        given = {name: self.data[name] for name in wanted if self.data.get(name) is not None}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
        return [word for name, text in texts.items() for word in (f"--data.{name}", text)]

    def changed(self, data: DataConfig) -> list[str]:
        """The fields that make another test set of `data` than the model's own; none if nothing is known."""
        default = DataConfig()
        return [
            name
            for name in (SAME if self.data else ())
            if (own := self.data.get(name, getattr(default, name))) != (asked := getattr(data, name))
            and not (name == "name" and _is_same_set(own, asked))
        ]

    def differences(self, data: DataConfig, norm: str, eps: float) -> list[str]:
        """In what an evaluation is another than the model was made for, each a phrase; empty if nothing is known."""
        found = []
        if (
            self.data.get("root")
            and data.root
            and data.name == "folder"
            and not _is_same_folder(self.data["root"], data.root)
        ):
            found.append(f"data.root {data.root} in the place of {self.data['root']}")
        for name in self.changed(data):
            own = self.data.get(name, getattr(DataConfig(), name))
            found.append(f"data.{name} {getattr(data, name)} in the place of {own}")
        if self.norm and (norm != self.norm or (self.eps is not None and abs(eps - self.eps) > 1e-9)):
            own = f"{self.norm} {self.eps:.5g}" if self.eps is not None else self.norm
            found.append(f"the threat {norm} {eps:.5g} in the place of {own}")
        return found


def known(model: str) -> Known:
    """What is known of `model`: of a run's folder, an assembled checkpoint's, or a registered checkpoint's name.

    Raises:
        ValueError: a file of its folder cannot be read.
    """
    for folder in _folders(model):
        for name in ("config.yaml", "training.yaml"):
            if (folder / name).is_file():
                return _read(folder / name, folder / "config.json")
    return Known({})


def _is_same_set(own: str, asked: str) -> bool:
    """Whether both are names of one data set; of a published checkpoint's local folder only the last name is left."""
    (own_kind, _, own_folder), (kind, _, folder) = own.partition("/"), asked.partition("/")
    if own == asked or own_kind != kind or not Path(folder).is_dir():
        return own == asked
    # With a slash it is a folder that may be elsewhere now, or a name on the Hub, such as uoft-cs/cifar10.
    return ("/" not in own_folder or Path(own_folder).is_dir()) and _is_same_folder(own_folder, folder)


def _is_same_folder(own: str, asked: str) -> bool:
    """Of a published checkpoint, whose folder is somewhere else, by its name alone."""
    return Path(own).resolve() == Path(asked).resolve() if Path(own).exists() else Path(own).name == Path(asked).name


def _folders(model: str) -> list[Path]:
    path = Path(model.removeprefix("local-dir:"))
    if path.is_dir():
        return [path, path.resolve().parent]  # RUN, or RUN/model
    if ":" in model:
        return []
    # Here, since they import timm, which a folder does not need yet.
    import timm

    from timm_arat.evaluation._model import check_name
    from timm_arat.models._weights import CARDS

    check_name(model)
    cfg = timm.get_pretrained_cfg(model)
    architecture = model.partition(".")[0]
    return [CARDS / f"{architecture}.{cfg.tag}"] if cfg is not None and cfg.tag else []


def _read(recipe: Path, config: Path) -> Known:
    try:
        run = yaml.safe_load(recipe.read_text())
        facts = json.loads(config.read_text()) if config.is_file() else {}
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"{recipe.parent}: its configuration cannot be read: {' '.join(str(error).split())}"
        ) from error
    names = {field.name for field in fields(DataConfig)}
    data = {name: value for name, value in _part(run, "data").items() if name in names}
    norm, eps = _threat(
        _part(run, "evaluation"), _part(run, "attack"), _part(_part(run, "method"), "attack"), _part(facts, "threat")
    )
    return Known(data, norm, eps)


def _part(tree: Any, name: str) -> dict[str, Any]:
    part = tree.get(name) if isinstance(tree, Mapping) else None
    return dict(part) if isinstance(part, Mapping) else {}


def _threat(*places: dict[str, Any]) -> tuple[Norm | None, float | None]:
    """The first norm that is given, and the first eps that stands beside it or beside no norm."""
    norm = next((place["norm"] for place in places if place.get("norm")), None)
    eps = next(
        (place["eps"] for place in places if place.get("eps") is not None and place.get("norm") in (None, norm)), None
    )
    top, _, bottom = str(eps).partition("/")  # a person may have written 8/255
    return norm, None if eps is None else float(top) / float(bottom or 1)
