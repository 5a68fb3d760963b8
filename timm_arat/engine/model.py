"""The backbone of a run, and the images in its size."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..data import Data, load
from ..models import WeightsNotFoundError, exported
from ..models import create as create_safely
from ..models._json import RESERVED, read_config
from ..modes import evaluating
from ..names import nearest
from .config import ModelConfig, TrainConfig


def build_model(config: TrainConfig, data: Data | None = None) -> tuple[nn.Module, Data]:
    """The backbone for the data set, and the data set in its size: `data`, where it is open already."""
    check_name(config.model.name, "model")
    input_size = _input_size(config)
    data = data or load(config.data, input_size=input_size)
    model: Any = create(config.model, "model", input_size, data.num_classes)
    # An export says how its own images were prepared, and nothing of a checkpoint that it may have started from.
    of_the_source = ("paper_ids", "origin_url", "label_names", "label_descriptions")
    model.pretrained_cfg.update(data.preprocessing | {"tag": ""} | dict.fromkeys(of_the_source))
    return model, data


def build_teacher(config: TrainConfig, model: nn.Module) -> nn.Module | None:
    """The second network, for the images and classes of `model`; None where `config` names none."""
    if not config.teacher.name:
        return None
    check_name(config.teacher.name, "teacher")
    cfg: Any = model.pretrained_cfg
    return create(config.teacher, "teacher", cfg["input_size"], cfg["num_classes"])


def check_name(name: str, section: str) -> None:
    """ValueError, naming what is near, unless `name` is a timm model, a place of one, or a folder."""
    if not timm.is_model(name.split(".")[0]) and ":" not in name and not Path(name).is_dir():
        raise ValueError(
            f"{section}.name: timm knows no model {name!r}, and there is no such folder; "
            f"{nearest(name, timm.list_models(), most=3)}"
        )


def create(settings: ModelConfig, section: str, input_size: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The network of one section of the recipe, for images of `input_size` (C, H, W)."""
    name = _timm_name(settings.name)
    for argument, setting in (("num_classes", "data.num_classes"), ("in_chans", "data.in_chans")):
        if argument in settings.kwargs:
            raise ValueError(f"{section}.kwargs.{argument}: the data decide it; set {setting}, or leave it out")
    for argument in RESERVED:
        if argument in settings.kwargs:
            # An export could not say it again: its own folder is where its weights come from.
            raise ValueError(
                f"{section}.kwargs.{argument} is no argument of a network: {section}.name says which, and "
                f"{section}.pretrained whether with its weights; weights from a file begin with the folder they lie in "
                "(a run's, or one with config.json and model.safetensors)"
            )
    kwargs = {"num_classes": num_classes, "in_chans": input_size[0], **settings.kwargs}
    target: dict[str, Any] = {"input_size": input_size, "num_classes": num_classes}
    if settings.pretrained:
        overlay = _source_overlay(name, input_size)
    else:
        # Nothing was trained on another range of pixels: take them as they are.
        overlay = target | {"mean": (0.0,) * input_size[0], "std": (1.0,) * input_size[0]}
    try:
        model: Any = create_safely(name, settings.pretrained, pretrained_cfg_overlay=overlay, **kwargs)
    except TypeError as error:
        raise ValueError(f"{section}.kwargs: {name} does not take them: {error}") from error
    except WeightsNotFoundError as error:
        raise ValueError(f"{section}.pretrained: {error}") from error
    except RuntimeError as error:
        cfg = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
        if not settings.pretrained or cfg is None or cfg.has_weights:
            raise
        raise ValueError(
            f"{section}.pretrained: no weights for {name}: set {section}.pretrained to false, which begins at "
            "random, or name a checkpoint or a run's folder"
        ) from error
    if pool := _pool_size(model.pretrained_cfg, input_size):
        target["pool_size"] = pool
    model.pretrained_cfg.update(target)
    _check_size(model, settings, section, input_size)
    if settings.init == "torch":
        _begin_as_torch(model)
    if settings.sync_norm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before the method splits the norms
    if settings.checkpointing:
        model.set_grad_checkpointing(True)
    return model


def _check_size(model: nn.Module, settings: ModelConfig, section: str, input_size: tuple[int, int, int]) -> None:
    """ValueError where a network that is built for images of one size takes no others: one black image is tried."""
    built: Any = model
    cfg = timm.get_pretrained_cfg(built.pretrained_cfg["architecture"], allow_unregistered=True)
    if cfg is None or not cfg.fixed_input_size or settings.kwargs.get("img_size") == input_size[-1]:
        return
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *input_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        side = input_size[-1]
        raise ValueError(
            f"{section}: {settings.name} does not take images of {side} pixels ({' '.join(str(error).split())}): give "
            f"{section}.kwargs.img_size={side}, by which timm builds it for them, or another data.image_size"
        ) from error


def _pool_size(cfg: Any, input_size: tuple[int, int, int]) -> tuple[int, ...] | None:
    """Height and width of the last features, as timm notes them, for images of another size than its own."""
    own = timm.get_pretrained_cfg(cfg["architecture"], allow_unregistered=True)
    if not cfg.get("pool_size") or own is None or not own.pool_size:
        return None
    pairs = zip(own.pool_size, own.input_size[1:], input_size[1:], strict=True)
    return tuple(max(1, -(-pool * here // side)) for pool, side, here in pairs)


def _begin_as_torch(model: nn.Module) -> None:
    """Draw the weights of every layer that torch knows as torch does; a model's own parameters stay as they are."""
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def weights_name(name: str) -> str:
    """The name of a pretrained model with the tag of its weights, which timm chooses where `name` has none."""
    cfg = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    return f"{cfg.architecture}.{cfg.tag}" if cfg else name


def _timm_name(name: str) -> str:
    """`name` as timm takes it: a run's or an exported model's folder by `local-dir:`."""
    folder = None if timm.is_model(name) else exported(name)
    return f"local-dir:{folder}" if folder else name


def _source_overlay(name: str, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Resize a pretrained model; its channels and classes stay the source's, by which timm adapts stem and head."""
    cfg = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {} if cfg is None else {"input_size": (cfg.input_size[0], *input_size[1:])}


def _input_size(config: TrainConfig) -> tuple[int, int, int]:
    """C, H, W of the images: the data's own setting, the model's argument, or the model's default."""
    size = config.data.image_size or config.model.kwargs.get("img_size")
    if isinstance(size, list | tuple):
        if len(size) != 2 or size[0] != size[1]:
            raise ValueError(f"model.kwargs.img_size is {size}: images are square here; give one number")
        size = size[0]
    if size is None:
        size = _own_input_size(_timm_name(config.model.name))
    return config.data.in_chans, int(size), int(size)


def _own_input_size(name: str) -> int:
    """Height of the images that the network `name` was made for; ValueError where only the Hub knows."""
    if name.startswith("local-dir:"):
        fields = read_config(Path(name.removeprefix("local-dir:")) / "config.json")
        cfg = fields.get("pretrained_cfg", fields)
    else:
        found = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
        cfg = {} if found is None else {"input_size": found.input_size}
    if not cfg.get("input_size"):
        raise ValueError(f"the input size of {name} is not known before it is loaded: give data.image_size")
    return int(cfg["input_size"][-1])
