"""Export: a trained backbone as the plain timm folder that the Hub and `timm.create_model` know."""

import os
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from ..models import create
from ..models._json import read_config
from ..models._weights import AUX_NORM, WEIGHTS
from ..norm import is_split, merge_split_norm, norm_branch, split_norms


def export(
    model: nn.Module,
    folder: str | Path,
    *,
    mix: float = 0.0,
    model_args: dict[str, Any] | None = None,
    half: bool = False,
    **facts: Any,
) -> Path:
    """Write the plain backbone of `model` (its main branch) as config.json and model.safetensors.

    `timm.create_model('local-dir:FOLDER', pretrained=True)` loads it, without timm_arat wherever timm knows the
    architecture. The norms of the auxiliary branch, where there are some, are written beside it as
    aux_norm.safetensors, by their keys in the split model, for further training. The folder is read back and its
    logits compared before this returns.

    Args:
        model: A timm model, with or without split norms; it is left as it is.
        folder: Where to write. An export that is there already is replaced, once the new one was read back; other
            files stay as they are.
        mix: Share of the auxiliary branch in the norms that are written, in [0, 1]; see `merge_split_norm`.
        model_args: What `timm.create_model` was given beyond the name and the number of classes.
        half: Write the parameters in half precision, rounded to float16; they load into a float32 model as ever.
        facts: Further top-level entries of config.json, such as the threat model.

    Raises:
        ValueError: it is no timm model, the export does not give back its logits (with `half`, those of its rounded
            weights) bit for bit, a weight is too large for `half`, or `folder` holds a config.json or weights that are
            no export of a timm model; what is there is left as it was.
    """
    folder = Path(folder)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if missing := [name for name in ("architecture", "input_size") if not cfg.get(name)]:
        raise ValueError(
            f"{type(model).__name__} cannot be exported: it has no pretrained_cfg with {' and '.join(missing)}, by "
            "which timm builds it again; only timm's models can, see docs/publishing.md to register one of your own"
        )
    _check_free(folder)
    plain = deepcopy(model).eval()
    # Loaded weights are contiguous; the same memory format everywhere makes equal logits equal to the last bit.
    plain = plain.cpu().to(memory_format=torch.contiguous_format)
    aux = aux_norm(plain)
    if aux:
        merge_split_norm(plain, mix=mix)
    elif mix:
        raise ValueError(f"mix={mix} of a model without split norms: there is no auxiliary branch to mix in")
    # split_norm is an argument of our names; what is written is plain. timm keeps its own record of the arguments.
    args = {key: value for key, value in (model_args or {}).items() if key != "split_norm"}
    getattr(plain, "_model_args", {}).pop("split_norm", None)
    if half:
        _round(plain)
        aux = {key: value.half() if value.is_floating_point() else value for key, value in aux.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export.", dir=folder) as partial:
        aside = Path(partial)
        save_for_hf(
            _halved(plain) if half else plain, str(aside), model_config=facts, model_args=args, safe_serialization=True
        )
        if aux:
            save_file(aux, aside / AUX_NORM)
        _verify(model, plain, aside, folder, other=bool(mix) or half)
        # A move replaces a link, where writing would go through it to somebody's other file.
        for name in (WEIGHTS, AUX_NORM, "config.json"):
            if (aside / name).exists():
                os.replace(aside / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    return folder


@torch.no_grad()
def _round(model: nn.Module) -> None:
    """Round the parameters of `model` to what half precision holds, in place. Statistics, which are few, stay."""
    for name, parameter in model.named_parameters():
        rounded = parameter.half()
        if not rounded.isfinite().all():
            raise ValueError(f"half=True: the weight {name} does not fit half precision, whose largest number is 65504")
        parameter.copy_(rounded)


def _halved(model: nn.Module) -> nn.Module:
    """A copy of a rounded model whose parameters take half the room."""
    copy = deepcopy(model)
    for parameter in copy.parameters():
        parameter.data = parameter.data.half()
    return copy


def _check_free(folder: Path) -> None:
    """ValueError where a file that is no export's would be replaced."""
    there = [name for name in ("config.json", WEIGHTS, AUX_NORM) if os.path.lexists(folder / name)]
    if not there:
        return
    try:
        read_config(folder / "config.json")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{folder} holds {' and '.join(there)} and is no exported model ({error}): nothing there is touched, give "
            "another folder"
        ) from error


def aux_norm(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and statistics of the auxiliary branch, by their keys in a split model; empty for a plain one.

    It is whole also where the branches share a half, so that it fits a model whose norms are split as usual.
    """
    found = {}
    for name, norm in split_norms(model):
        own = norm.aux_bn[0].state_dict()
        shared = {key: value for key, value in norm.state_dict().items() if not key.startswith("aux_bn.")}
        for key, value in ({key: shared[key] for key in shared if norm.share} | own).items():
            found[f"{name}.aux_bn.0.{key}".lstrip(".")] = value.clone().contiguous()
    return found


def _verify(model: nn.Module, plain: nn.Module, aside: Path, folder: Path, other: bool) -> None:
    """ValueError unless what lies in `aside`, and is meant for `folder`, gives back the logits."""
    saved = load_file(aside / WEIGHTS)
    config = read_config(aside / "config.json")
    loaded = create(f"local-dir:{aside}", pretrained=True).eval()
    size = config["pretrained_cfg"]["input_size"]
    x = torch.rand((2, *size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if saved.keys() != plain.state_dict().keys() or not torch.equal(loaded(x), plain(x)):
            raise ValueError(f"the model exported to {folder} does not give back the trained model's logits")
        if other:
            return  # a mixed or rounded model exists as `plain` only
        trained = deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
        if is_split(trained):
            with norm_branch(trained, "main"):
                expected = trained(x)
        else:
            expected = trained(x)
    if not torch.equal(expected, loaded(x)):
        raise ValueError(f"the model exported to {folder} differs from the main branch of the trained model")
