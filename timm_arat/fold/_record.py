"""One forward pass, recorded: which layer may take the norm behind it."""

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_LAYERS = {torch.conv1d, torch.conv2d, torch.conv3d, F.linear}  # the first dimension of their weights is the output's
# What is known to normalise and no more, but for the activation of timm's own.
_NORMS = {kind.forward for kind in (_BatchNorm, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct)}
_TYPE_OF: Any = Tensor.dtype.__get__  # type: ignore[attr-defined]  # a getter of C
_FACTS = (int, torch.Size, torch.dtype, torch.device, torch.layout)  # what asking a tensor about itself gives

# A layer, the norm that is folded into it if any, and the type in which the layer computes.
Pair = tuple[nn.Module, _BatchNorm | None, torch.dtype]


class Record(TorchFunctionMode):
    """What every tensor of a forward pass was used for. It holds them all, since identity is by address."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[int] = Counter()
        self.asked: set[int] = set()  # for their type
        self.layers: list[tuple[Tensor, Tensor, Any]] = []  # output, weight and bias of every layer that was given one
        self.norms: list[tuple[Tensor, dict[str, Any]]] = []  # input and settings of every BatchNorm in eval mode
        self.held: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.held.append((args, kwargs, out))
        if not isinstance(out, _FACTS):
            used = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            self.uses.update(used)
        if func == _TYPE_OF:  # a new one each time, so not `is`
            self.asked.add(id(args[0]))
        if func in _LAYERS and len(args) > 2:
            self.layers.append((out, args[1], args[2]))
        if func is F.batch_norm and kwargs.get("training") is False:  # so it hands its arguments on
            x, mean, var = args
            self.norms.append((x, {"running_mean": mean, "running_var": var, **kwargs}))
        return out


def pairs_of(model: nn.Module, record: Record, logits: Any) -> list[Pair]:
    """The layers and norms that may become one.

    By what they are and by how their tensors are used: values prove little where a norm is as it was initialised.
    """
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            owners.setdefault(id(tensor), []).append(module)

    def holder(used: dict[str, Any]) -> nn.Module | None:
        """The module to which all of these belong, by these names, if each was used once and in no other."""
        tensors = [each for each in used.values() if each is not None]
        holders = {id(module): module for each in tensors for module in owners.get(id(each), [])}
        if len(holders) != 1:
            return None
        (module,) = holders.values()
        own = all(getattr(module, name, ...) is value for name, value in used.items())
        return module if own and all(record.uses[id(each)] == 1 for each in tensors) else None

    by_output: dict[int, Pair] = {}
    for out, weight, bias in record.layers:
        layer = holder({"weight": weight, "bias": bias})
        if layer is None or not {"weight", "bias"} <= layer._parameters.keys():
            continue
        if out.dtype == weight.dtype or not record.asked & {id(weight), id(bias)}:
            by_output[id(out)] = layer, None, out.dtype
    answers = {id(leaf) for leaf in tree_leaves(logits)}
    for x, settings in record.norms:
        norm = holder({name: settings[name] for name in ("running_mean", "running_var", "weight", "bias")})
        if not isinstance(norm, _BatchNorm) or not _only_normalises(norm) or settings["eps"] != norm.eps:
            continue
        if id(x) in by_output and record.uses[id(x)] == 1 and id(x) not in answers:
            layer, _, dtype = by_output[id(x)]
            # The layer's outputs lie where the norm's channels do: linear layers on tokens have them last.
            if x.ndim == layer.weight.ndim:
                by_output[id(x)] = layer, norm, dtype
    return [pair for pair in by_output.values() if pair[1] is not None or pair[0].weight.dtype != pair[2]]


def _only_normalises(norm: _BatchNorm) -> bool:
    # A norm that runs as another class's, as a split norm does, says so by `bare`.
    return "forward" not in vars(norm) and getattr(type(norm), "bare", type(norm)).forward in _NORMS
