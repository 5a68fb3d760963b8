"""Export: a trained backbone as the plain timm folder that the Hub and `timm.create_model` know."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

from .norm import is_split, merge_split_norm, norm_branch


def export(model: nn.Module, folder: str | Path, *, model_args: dict[str, Any] | None = None, **facts: Any) -> Path:
    """Write the plain backbone of `model` (its main branch) as config.json and model.safetensors.

    `timm.create_model('local-dir:FOLDER', pretrained=True)` loads it, without timm_arat wherever timm knows the
    architecture. The folder is read back and its logits compared before this returns.

    Args:
        model: A timm model, with or without split norms; it is left as it is.
        folder: Where to write; existing files of these names are replaced.
        model_args: What `timm.create_model` was given beyond the name and the number of classes.
        facts: Further top-level entries of config.json, such as the threat model.

    Raises:
        ValueError: the folder does not give back the logits of `model`, bit for bit.
    """
    folder = Path(folder)
    plain = deepcopy(model).eval()
    if is_split(plain):
        merge_split_norm(plain)
    # Loaded weights are contiguous; the same memory format everywhere makes equal logits equal to the last bit.
    plain = plain.cpu().to(memory_format=torch.contiguous_format)
    save_for_hf(plain, str(folder), model_config=facts, model_args=model_args or {}, safe_serialization=True)
    _verify(model, plain, folder)
    return folder


def _verify(model: nn.Module, plain: nn.Module, folder: Path) -> None:
    saved = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    size = config["pretrained_cfg"]["input_size"]
    x = torch.rand((2, *size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if saved.keys() != plain.state_dict().keys() or not torch.equal(loaded(x), plain(x)):
            raise ValueError(f"the model exported to {folder} does not give back the trained model's logits")
        trained = deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
        if is_split(trained):
            with norm_branch(trained, "main"):
                expected = trained(x)
        else:
            expected = trained(x)
    if not torch.equal(expected, loaded(x)):
        raise ValueError(f"the model exported to {folder} differs from the main branch of the trained model")
