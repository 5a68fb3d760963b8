"""Other people's robust checkpoints, as RobustBench and MadryLab publish them: .pth files, opened on request only.

They are pickles. `torch.load(weights_only=True)` builds tensors and plain containers and runs nothing else; it is used
here and nowhere else in timm_arat, and nobody's configuration leads here: a person names the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# Where the weights lie in a training checkpoint, and what wrappers put before each key; the longer prefixes first.
INSIDE = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "attacker.model.", "attacker.", "model.", "backbone.", "0.", "1.")
# A layer that normalises inside the model is no weight of the network.
MEAN, STD = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
NORMALISATION = ("normalize.", "normalizer.", "normalization.")


@dataclass(frozen=True)
class ForeignReport:
    """What `load_foreign` found.

    Attributes:
        path: The file.
        inside: Name of the entry that held the weights; empty where the file holds them directly.
        prefixes: What was taken off the keys, in its order.
        left_out: Keys of the file that are no weights of the network, such as a normalisation layer's.
        mean, std: Of a normalisation layer in the file, one a channel, in pixels of [0, 1]; None if there is none. They
            are not applied: give them to `timm.create_model` by pretrained_cfg_overlay=dict(mean=..., std=...).
        loaded: Number of tensors in the model now.
    """

    path: Path
    inside: str
    prefixes: tuple[str, ...]
    left_out: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    loaded: int

    def __str__(self) -> str:
        where = f"entry {self.inside!r} of {self.path}" if self.inside else str(self.path)
        lines = [f"{self.loaded} tensors from {where}"]
        if self.prefixes:
            lines.append(f"taken off the keys: {', '.join(self.prefixes)}")
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        if self.mean or self.std:
            lines.append(f"the file normalises by mean {self.mean} and std {self.std}")
        return "; ".join(lines)


def load_foreign(model: nn.Module, path: str | Path) -> ForeignReport:
    """Load the file `path`, in the form of RobustBench or MadryLab's robustness, into `model`.

    It is a .safetensors file, or a pickle (.pth, .pt, .ckpt) of tensors and plain containers: nothing else is
    unpickled. Wrappers' prefixes are taken off the keys, and every key must then be one of the model's with its shape,
    and every key of the model's be there; batch counters may be missing.

    Raises:
        ValueError: the file holds more than tensors, or its weights are of another architecture; `model` is unchanged.
        OSError: the file cannot be read.
    """
    path = Path(path)
    content = _open(path)
    inside, state = _weights_of(content, path)
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    left_out: dict[str, Tensor] = {}
    prefixes: dict[str, None] = {}  # an ordered set
    unknown = []
    for key, value in state.items():
        short, taken = _without_prefixes(key, own)
        if short in own:
            prefixes |= dict.fromkeys(taken)
            if short in found and not torch.equal(found[short], value):
                raise ValueError(f"{path} holds {short} twice, with different values: keep one of them")
            found[short] = value
        elif short in (*MEAN, *STD) or short.startswith(NORMALISATION):
            left_out[key] = value
        else:
            unknown.append(key)
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ValueError(
            f"{path} is of another architecture than {type(model).__name__}: {_some(missing)} of the model's keys "
            f"missing, {_some(unknown)} of the file's unknown, {_some(list(prefixes))} taken off"
        )
    for key, value in found.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{path}: {key} has shape {tuple(value.shape)}, the model's has {tuple(own[key].shape)}: build the "
                "model with the file's num_classes and widths"
            )
    model.load_state_dict(found, strict=False)  # what may be missing was looked at above
    mean, std = _channels(left_out, MEAN), _channels(left_out, STD)
    return ForeignReport(path, inside, tuple(prefixes), tuple(left_out), mean, std, len(found))


def _open(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}): it is torn, or no safetensors file") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} holds more than tensors, or is torn ({said}): it is not opened, since a pickle may run code. "
            "Where you trust it, save its state_dict alone by torch.save, or as safetensors"
        ) from error


def _weights_of(content: Any, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The entry that holds the weights, by its name, and its tensors."""
    inside = ""
    if isinstance(content, Mapping):
        inside = next((name for name in INSIDE if isinstance(content.get(name), Mapping)), "")
    state = content[inside] if inside else content
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds {type(state).__name__} without tensors, wanted a state_dict")
    return inside, {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _without_prefixes(key: str, own: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """`key` with wrappers' prefixes taken off until it is one of the model's, and those prefixes."""
    taken = []
    while key not in own and (prefix := next((each for each in PREFIXES if key.startswith(each)), "")):
        taken.append(prefix)
        key = key.removeprefix(prefix)
    return key, taken


def _channels(found: Mapping[str, Tensor], names: tuple[str, ...]) -> tuple[float, ...] | None:
    values = next((value for key, value in found.items() if key.rpartition(".")[2] in names), None)
    return None if values is None else tuple(values.flatten().tolist())


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more if keys else "none"
