"""Where the weights of a checkpoint lie: in the package, on the Hub, or nowhere yet. Safetensors only."""

import hashlib
import logging
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,  # its client's, httpx or httpx2
    LocalEntryNotFoundError,
)
from timm.models import PretrainedCfg

from ._json import read_config, read_json
from ._safetensors import shapes
from ._secrets import without_password

WEIGHTS = "model.safetensors"
AUX_NORM = "aux_norm.safetensors"
HUB = "https://huggingface.co/"
RECORD = "hub.json"  # of a checkpoint's folder: repository, commit and sha256, once it is published
_PACKAGE = Path(__file__).parents[1]
WHEEL_BYTES = 6_000_000  # larger weights are left out of a wheel, see pyproject.toml
# One folder a checkpoint: inside the package in a wheel, beside it in a checkout.
CARDS = _PACKAGE / "hub_cards" if (_PACKAGE / "hub_cards").is_dir() else _PACKAGE.parent / "hub_cards"
COPY = (
    f"a copy loads by pretrained_cfg_overlay=dict(file='.../{WEIGHTS}'), a checkpoint's whole folder by "
    "timm.create_model('local-dir:FOLDER', pretrained=True)"
)


class WeightsNotFoundError(OSError):
    """The weights of a name could not be had; the message says what was looked for and where they may lie."""


def published(name: str) -> dict[str, Any]:
    """Fields of timm's PretrainedCfg for the checkpoint `name`, ARCHITECTURE.TAG; empty where there are no weights.

    A checkpoint that was not evaluated does not count. One with a torn file has no weights either, with a warning that
    names the file: the other names have theirs.
    """
    try:
        return _published(name)
    except (ValueError, OSError) as error:
        warnings.warn(f"{name} has no weights here: {error}", stacklevel=2)
        return {}


def _published(name: str) -> dict[str, Any]:
    folder = CARDS / name
    if not (folder / "results.json").is_file():
        return {}
    read_json(folder / "results.json")
    if (folder / WEIGHTS).is_file():
        shapes(folder / WEIGHTS)
        source = {"file": str(folder / WEIGHTS)}
    elif pinned := _pinned(name):
        source = {"hf_hub_id": pinned}
    else:
        return {}
    config = read_config(folder / "config.json")
    known = {field.name for field in fields(PretrainedCfg)}
    cfg = config.get("pretrained_cfg", config) | {"label_names": config.get("label_names")}
    # timm writes its own configurations with tuples.
    cfg = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items() if key in known}
    return cfg | source


def tags(name: str) -> list[str]:
    """The tags of the architecture `name` that have weights, in alphabetical order."""
    folders = sorted(CARDS.glob(f"{name}.*")) if CARDS.is_dir() else []
    found = [folder.name.partition(".")[2] for folder in folders]
    return [tag for tag in found if published(f"{name}.{tag}")]


def fetch(cfg: PretrainedCfg, name: str, filename: str = WEIGHTS, cache_dir: str | Path | None = None) -> Path:
    """The file `filename` of the checkpoint that `cfg` points to, downloaded where it lies on the Hub.

    Raises:
        WeightsNotFoundError: it points nowhere, or the file cannot be had, or is not the published one.
        ValueError: it points to something else than safetensors.
    """
    if cfg.file:
        return _beside(Path(cfg.file), filename, name)
    if cfg.hf_hub_id:
        filename = cfg.hf_hub_filename if cfg.hf_hub_filename and filename == WEIGHTS else filename
        path = download(cfg.hf_hub_id, filename, cache_dir)
        if filename == WEIGHTS and cfg.hf_hub_id == _pinned(name):
            _check_sha256(path, _record(name)["sha256"], cfg.hf_hub_id)
        return path
    if cfg.url:
        raise ValueError(f"{name}: {cfg.url}: weights come from a file or the Hub, give file= or hf_hub_id= instead")
    exist = timm.list_pretrained("*_arat*")
    backbone = name.partition(".")[0].removesuffix("_arat")
    if (CARDS / name / "results.json").is_file():
        raise WeightsNotFoundError(
            f"the weights of {name} are not in this installation: they lie in the repository of timm_arat, as "
            f"hub_cards/{name}/{WEIGHTS}, which is too large for its wheel. From a checkout the name loads; {COPY}"
        )
    raise WeightsNotFoundError(
        f"no weights of {name} are published yet; there are: {', '.join(exist) or 'none'}. Train them by `accelerate "
        f"launch recipes/train.py --data.name DATA --model.name {backbone}` and load "
        f"timm.create_model('local-dir:RUN/model', pretrained=True); {COPY}"
    )


def model_args(name: str, file: Path) -> dict[str, Any]:
    """What the network in `file` was built with beyond the defaults of its architecture.

    By the config.json beside it, or the one of the checkpoint `name`.
    """
    for config in (file.with_name("config.json"), CARDS / name / "config.json"):
        if config.is_file():
            return dict(read_config(config).get("model_args") or {})
    return {}


def download(
    hub_id: str, filename: str = WEIGHTS, cache_dir: str | Path | None = None, *, config: bool = False
) -> Path:
    """`filename` of the repository `hub_id`, ORG/NAME or ORG/NAME@REVISION, from the cache or the Hub.

    Safetensors only, or with `config` the repository's config.json.
    """
    if config:
        filename = "config.json"
    else:
        refuse_pickle(filename, hub_id)
    repo_id, _, revision = hub_id.partition("@")
    endpoint = without_password(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(repo_id, filename, revision=revision or None, cache_dir=cache_dir))
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{endpoint} was not reached"
        raise WeightsNotFoundError(
            f"{filename} of {hub_id} is not in the cache ({cache_dir or constants.HF_HUB_CACHE}), and {why}: "
            f"download it once with a network, by `hf download {repo_id}`, and it stays in the cache; {COPY}"
        ) from error
    except EntryNotFoundError as error:
        raise WeightsNotFoundError(f"{hub_id} on {endpoint} holds no {filename}") from error
    except (HTTPError, HFValidationError) as error:
        said = without_password(" ".join(str(error).split()))[:300]
        raise WeightsNotFoundError(
            f"{filename} of {hub_id} could not be had from {endpoint} ({said}): check the name and the "
            "revision; a private repository wants `hf auth login` or HF_TOKEN"
        ) from error


def describe(cfg: PretrainedCfg, name: str, file: Path) -> None:
    """One line in the log `timm_arat`: what the weights that are loaded know, and where they are."""
    config = {}
    if (beside := file.with_name("config.json")).is_file():
        config = read_config(beside)
    data, threat = config.get("dataset"), config.get("threat")
    tag = cfg.tag or ""
    known = data.get("name") if isinstance(data, dict) else tag.partition("_")[0]
    against = f"{threat.get('norm')} eps {threat.get('eps')}" if isinstance(threat, dict) else tag.partition("_")[2]
    size = "x".join(map(str, cfg.input_size))
    logging.getLogger("timm_arat").info(
        "%s: data %s, %d classes, pixels %s, threat %s, from %s", name, known, cfg.num_classes, size, against, file
    )


def _record(name: str) -> dict[str, Any]:
    record = CARDS / name / RECORD
    return read_json(record) if record.is_file() else {}


def _pinned(name: str) -> str | None:
    """ORG/NAME@COMMIT, if the checkpoint was published on the Hub that is spoken to: a rehearsal's record, made on
    another server, counts there only."""
    record = _record(name)
    if not record.get("revision"):
        return None
    values: dict[str, Any] = {field: record.get(field) for field in ("repo_id", "revision", "sha256", "url")}
    for field, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{CARDS / name / RECORD}: {field} is {value!r}, wanted text: publish it again")
    if not values["url"].startswith((HUB, without_password(constants.ENDPOINT))):
        return None
    return f"{values['repo_id']}@{values['revision']}"


def _beside(file: Path, filename: str, name: str) -> Path:
    """`filename` in the folder of `file`; `file` itself, whatever it is called, for the weights."""
    path = file / filename if file.is_dir() else file if filename == WEIGHTS else file.with_name(filename)
    refuse_pickle(path.name, str(path))
    if not path.is_file():
        raise WeightsNotFoundError(f"{name}: there is no file {path}")
    shapes(path)
    return path


def refuse_pickle(filename: str, where: str) -> None:
    """ValueError unless the file's name ends in .safetensors, by which timm, too, decides how a file is read."""
    if not filename.endswith(".safetensors"):
        raise ValueError(
            f"{where} ({filename}): weights load from .safetensors only, since a pickle may run code. Convert it where "
            "you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
        )


def _check_sha256(path: Path, expected: str, hub_id: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise WeightsNotFoundError(
            f"{path} from {hub_id} has sha256 {found}, published was {expected}: delete it and load again"
        )
