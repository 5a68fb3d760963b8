"""JSON that others wrote, read within limits: what is wrong with it is a ValueError that names the file and the field.

A config.json decides how large a model is built before a single weight was read, so its numbers are bounded; the
bounds lie an order of magnitude above what timm's own models have.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg

MAX_BYTES = 64 << 20
MAX_DEPTH = 16
MAX_CLASSES = 1_000_000
MAX_SIDE = 16_384  # pixels
MAX_LAYERS = 1_000  # and as many blocks, stages or entries of a list
MAX_NUMBER = 65_536  # any other number of model_args: widths, image sizes, heads
# Arguments of timm.create_model that say where weights come from: the folder says that, not its config.json.
RESERVED: tuple[str, ...] = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "model_name",
    "features_only", "pretrained_strict", "pretrained_filter_fn", "pretrained_model_args", "device", "dtype",
)  # fmt: skip
KNOWN = {field.name for field in fields(PretrainedCfg)}


def read_json(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises:
        ValueError: it is longer than `max_bytes`, no JSON, no object, nested deeper than 16, or holds NaN or infinity.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} is longer than {max_bytes} bytes: no such file is as large")
    try:
        found = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, wanted an object")
        _check_depth(found, MAX_DEPTH)
    except RecursionError as error:
        raise ValueError(f"{path} cannot be used: it is nested deeper than {MAX_DEPTH}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}; it may be cut short, write or download it again") from error
    return found


def read_config(path: str | Path) -> dict[str, Any]:
    """timm's config.json of an exported model, with every field that decides what is built checked.

    Raises:
        ValueError: it is no such file, or a field has another kind or lies outside its bounds; both are named.
        OSError: the file cannot be read.
    """
    config = read_json(path, 16 << 20)
    try:
        _check(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _check(config: dict[str, Any]) -> None:
    text = _text(200)
    _need(config, "architecture", lambda value: text(value) and re.fullmatch(r"\w+", value), "a name of timm's")
    if "pretrained_cfg" in config:
        cfg = config["pretrained_cfg"]
        if not isinstance(cfg, dict):
            raise ValueError(f"pretrained_cfg is {_shown(cfg)}, wanted an object")
        if unknown := sorted(cfg.keys() - KNOWN):
            raise ValueError(f"pretrained_cfg.{unknown[0][:80]} is a field that this timm does not know")
        _check_fields(cfg, "pretrained_cfg.")
    else:  # timm's older form: everything in one object
        extra = {"architecture", "num_features", "labels", "model_args"}
        if unknown := sorted(config.keys() - KNOWN - extra):
            raise ValueError(f"{unknown[0][:80]} is a field that this timm does not know")
    _check_fields(config, "")
    args = config.get("model_args", {})
    if not isinstance(args, dict):
        raise ValueError(f"model_args is {_shown(args)}, wanted an object")
    for name, value in args.items():
        if name in RESERVED or not name.isidentifier():
            raise ValueError(f"model_args.{name[:80]} is no argument of a model")
        _check_argument(name, value, f"model_args.{name}")


def _check_fields(cfg: dict[str, Any], prefix: str) -> None:
    """Those of timm's fields that steer the building of a model and the preprocessing; null is as if not there."""
    size = _numbers(3, 1, MAX_SIDE)
    names = _list(_text(1_000), MAX_CLASSES)
    layer = _either(_text(200), _list(_text(200), 100))
    checks: dict[str, tuple[Callable[[Any], object], str]] = {
        "num_classes": (_whole(0, MAX_CLASSES), f"a whole number from 0 to {MAX_CLASSES}"),
        "label_offset": (_whole(0, 1), "0 or 1"),
        "input_size": (size, f"three whole numbers from 1 to {MAX_SIDE}"),
        "test_input_size": (size, f"three whole numbers from 1 to {MAX_SIDE}"),
        "min_input_size": (size, f"three whole numbers from 1 to {MAX_SIDE}"),
        "pool_size": (_numbers(2, 1, MAX_SIDE), f"two whole numbers from 1 to {MAX_SIDE}"),
        "test_pool_size": (_numbers(2, 1, MAX_SIDE), f"two whole numbers from 1 to {MAX_SIDE}"),
        "mean": (_list(_real(-1e4, 1e4), 1_024), "numbers"),
        "std": (_list(_real(1e-6, 1e4), 1_024), "numbers above 0"),
        "crop_pct": (_real(1e-3, 10), "a share"),
        "test_crop_pct": (_real(1e-3, 10), "a share"),
        "fixed_input_size": (lambda value: isinstance(value, bool), "true or false"),
        "custom_load": (_either(lambda value: isinstance(value, bool), _text(200)), "true or false"),
        "first_conv": (layer, "the name of a layer"),
        "classifier": (layer, "the name of a layer"),
        "label_names": (names, "names"),
        "hf_hub_filename": (_text(200), "the name of a file"),
        **{name: (_text(200), "text") for name in ("interpolation", "crop_mode", "global_pool", "tag", "license")},
    }
    for name, (is_right, wanted) in checks.items():
        value = cfg.get(name)
        if value is not None and not is_right(value):
            raise ValueError(f"{prefix}{name} is {_shown(value)}, wanted {wanted}")


def _check_argument(name: str, value: Any, where: str) -> None:
    """A number of layers and any other number have different bounds; lists and objects hold such values."""
    if isinstance(value, dict):
        for key, each in value.items():
            _check_argument(key, each, f"{where}.{key[:80]}")
    elif isinstance(value, list):
        if len(value) > MAX_LAYERS:
            raise ValueError(f"{where} has {len(value)} entries, wanted at most {MAX_LAYERS}")
        for each in value:
            _check_argument(name, each, where)
    elif isinstance(value, str):
        if len(value) > 1_000:
            raise ValueError(f"{where} is text of {len(value)} letters, wanted at most 1,000")
    elif value is not None and not isinstance(value, bool):
        counts_layers = re.search("layer|depth|block|stage|num_heads", name) is not None
        bound = MAX_CLASSES if name == "num_classes" else MAX_LAYERS if counts_layers else MAX_NUMBER
        if not -bound <= value <= bound:
            raise ValueError(f"{where} is {_shown(value)}, wanted at most {bound}")


def _need(config: dict[str, Any], name: str, is_right: Callable[[Any], object], wanted: str) -> None:
    if name not in config:
        raise ValueError(f"there is no {name}, wanted {wanted}")
    if not is_right(config[name]):
        raise ValueError(f"{name} is {_shown(config[name])}, wanted {wanted}")


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _text(length: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and len(value) <= length


def _list(is_right: Callable[[Any], bool], length: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) <= length and all(map(is_right, value))


def _numbers(count: int, low: int, high: int) -> Callable[[Any], bool]:
    each = _list(_whole(low, high), count)
    return lambda value: each(value) and len(value) == count


def _either(*checks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(check(value) for check in checks)


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it holds a number that is too large")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(each, left - 1)


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not JSON")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."
