"""Trees of tensors and plain values as safetensors and JSON: a state that can be read without running any of it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# Keys that stand for what JSON has no word for.
_TENSOR, _ORDER, _TUPLE, _ITEMS, _DTYPE = "$tensor", "$order", "$tuple", "$items", "$dtype"


def save_tree(tree: Any, path: Path) -> None:
    """Write `tree` to `path`.json and `path`.safetensors.

    It may hold tensors, their dtypes, numbers, text, None, and lists, tuples and dictionaries of these. The order in
    which a tensor lies in memory comes back too: fused optimizers walk through a weight and its momentum side by side,
    whatever their strides say.

    Raises:
        TypeError: it holds something else.
        OSError, SafetensorError: the files cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    plain = _packed(tree, "", tensors)
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(plain))


def load_tree(path: Path) -> Any:
    """What `save_tree` wrote, with its tensors on the CPU.

    Raises:
        ValueError, KeyError, OSError, SafetensorError: the files are gone or damaged.
    """
    tensors = load_file(path.with_suffix(".safetensors"))
    return _unpacked(json.loads(path.with_suffix(".json").read_text()), tensors)


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        order = sorted(range(value.ndim), key=value.stride, reverse=True)
        # A copy of its own: safetensors writes no two tensors that share memory.
        plain = value.detach().permute(order)
        tensors[name] = plain.to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {_TENSOR: name} if order == sorted(order) else {_TENSOR: name, _ORDER: order}
    if isinstance(value, dict):
        packed = {key: _packed(each, f"{name}/{key}", tensors) for key, each in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in packed):
            return packed
        return {_ITEMS: [[key, each] for key, each in packed.items()]}
    if isinstance(value, (list, tuple)):
        found = [_packed(each, f"{name}/{number}", tensors) for number, each in enumerate(value)]
        return {_TUPLE: found} if isinstance(value, tuple) else found
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint does not hold")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        found, order = tensors[value[_TENSOR]], value.get(_ORDER)
        return found if order is None else found.permute([order.index(dim) for dim in range(found.ndim)])
    if _DTYPE in value:
        return getattr(torch, value[_DTYPE])
    if _TUPLE in value:
        return tuple(_unpacked(each, tensors) for each in value[_TUPLE])
    if _ITEMS in value:
        return {key: _unpacked(each, tensors) for key, each in value[_ITEMS]}
    return {key: _unpacked(each, tensors) for key, each in value.items()}
