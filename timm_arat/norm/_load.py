"""Checkpoints into a split model: plain ones, ours, and timm's SplitBatchNorm ones."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..modes import keep_modes
from ._convert import convert_split_norm
from ._walk import batch_norms, check_split_norm, split_norms


def load_split_state_dict(model: nn.Module, state_dict: Mapping[str, Any], *, swap: bool | None = None) -> None:
    """Loads `state_dict` into the split `model`, strictly; `state_dict` is not changed.

    A checkpoint without any `aux_bn` key is plain: it fills both branches. One that has all of them is split. timm's
    SplitBatchNorm checkpoints (AdvProp) have the very keys and shapes of ours, but their main branch is the clean one,
    and no mark that survives safetensors can tell; hence `swap`:
    None, load as ours and warn; False, these are ours, be silent; True, exchange the branches.
    Raises ValueError, before anything is loaded, when keys are missing (a part of the aux keys above all) or unknown,
    or shapes differ.
    """
    check_split_norm(model)
    expected = model.state_dict()
    # aux key -> main key
    pairs = {
        f"{name}.aux_bn.0.{key}".lstrip("."): f"{name}.{key}".lstrip(".")
        for name, norm in split_norms(model)
        for key in norm.aux_bn[0].state_dict()
    }
    if not pairs:
        raise ValueError(f"{type(model).__name__} has no split norm: call convert_split_norm(model) first")
    loaded = dict(state_dict)
    if not any(".aux_bn." in f".{key}" for key in state_dict):
        if swap:
            raise ValueError("swap=True exchanges the branches of a checkpoint, but this one has no aux_bn key")
        loaded.update({aux: state_dict[main] for aux, main in pairs.items() if main in state_dict})
    elif swap:
        for aux, main in pairs.items():
            if aux in state_dict and main in state_dict:
                loaded[aux], loaded[main] = state_dict[main], state_dict[aux]
    elif swap is None:
        warnings.warn(
            "this checkpoint has aux_bn keys: its main branch is taken for the adversarial one, as timm_arat trains "
            "it. In timm's own (AdvProp, SplitBatchNorm2d) main is the clean branch: swap=True exchanges them; "
            "swap=False says that all is well",
            stacklevel=2,
        )
    _refuse_mismatch(model, expected, loaded)
    model.load_state_dict(loaded)
    with keep_modes(model):
        model.train()  # LeViT and others keep attention biases from eval to eval, and drop them only on this call


def load_aux_norm(model: nn.Module, aux: Mapping[str, Any]) -> None:
    """Splits the norms of the plain `model` and loads their second set, `aux`, as an export holds it.

    Split is every BatchNorm, and where `aux` has the parameters of another norm, as of a LayerNorm, all kinds of norm.
    Raises ValueError when `aux` is of another model; the norms are split then, and nothing is loaded.
    """
    batch = {name for name, _ in batch_norms(model)}
    held = {f".{key}".partition(".aux_bn.")[0].lstrip(".") for key in aux}
    plain = model.state_dict()
    convert_split_norm(model, norms=None if held <= batch else "all")
    expected = {key for key in model.state_dict() if ".aux_bn." in f".{key}"}
    if aux.keys() != expected:
        raise ValueError(
            f"the auxiliary norms do not fit {type(model).__name__}: {len(aux.keys() - expected)} of their keys are "
            f"unknown, {len(expected - aux.keys())} are missing"
        )
    load_split_state_dict(model, {**plain, **aux}, swap=False)


def _refuse_mismatch(model: nn.Module, expected: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    # Old checkpoints have no num_batches_tracked; torch fills it in.
    missing = [key for key in expected if key not in loaded and not key.endswith("num_batches_tracked")]
    unknown = [key for key in loaded if key not in expected]
    shapes = [
        f"{key} {tuple(loaded[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in loaded and loaded[key].shape != value.shape
    ]
    wrong = [
        f"{what} {len(keys)} keys ({', '.join(keys[:3])})"
        for what, keys in (("misses", missing), ("has unknown", unknown), ("has other shapes at", shapes))
        if keys
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint does not fit {type(model).__name__}: it {'; it '.join(wrong)}. A plain checkpoint has no "
            f"aux_bn key at all, a split one has all of them"
        )
