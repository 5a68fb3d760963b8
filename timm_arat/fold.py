"""Run a frozen network with its BatchNorms folded into the layers before them; the ground floor, true of any network.

In eval mode a BatchNorm is a constant scale and shift of each channel. Behind a convolution or a linear layer both go
into that layer's weight and bias, and the norm costs nothing any more: no pass over the activations, forward or
backward, and none kept for it. Under autocast a weight is also cast once, which autocast does at every pass where the
weight is frozen.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_LAYERS = {torch.conv1d, torch.conv2d, torch.conv3d, F.linear}  # the first dimension of their weights is the output's
_FACTS = (int, torch.Size, torch.dtype, torch.device, torch.layout)  # what asking a tensor about itself gives

# A layer, the norm that is folded into it if any, and the type in which the layer computes.
Pair = tuple[nn.Module, _BatchNorm | None, torch.dtype]
# How often what was found is folded before it is looked for again: weights move, and a norm may become one whose
# folding rounds too much.
USES = 100


@contextmanager
def folded(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Inside, `model` computes what it computes, up to rounding, with as many BatchNorms folded as is safe.

    Under autocast, convolutions and linear layers have their weights cast already, which rounds nothing more.

    For a model in eval mode whose parameters and buffers nobody changes or asks for inside. A norm is folded where one
    forward pass over `x` shows that the output of a layer went there and nowhere else, and that the layer ran once with
    a plain parameter as its weight (standardised and parametrised weights stay as they are). Whichever branch of a
    split norm is active then is folded. A model stays as it is that has hooks or checkpoints gradients (both hold
    tensors which that pass does not show), that cannot run on `x`, or whose logits for `x` would change.

    What was found is kept for the next `USES` calls, as long as the model is in the same state but for its weights.

    Args:
        model: Any network.
        x: An input or a few, for the pass.
    """
    state = _state(model, x)
    known = _plans.get(model)
    if known is None or known.state != state or known.uses == USES:
        known = None
    pairs, logits = (known.pairs, None) if known else _look(model, x)
    put_back: list[Callable[[], None]] = []
    try:
        for pair in pairs:
            put_back.append(_fold(*pair))
        if pairs and not known:
            with _eager(model), torch.no_grad():
                same = _close(model(x), logits)
            if not same:
                pairs = []
                _run(put_back)
                put_back.clear()
        _plans[model] = _Plan(state, pairs, known.uses + 1 if known else 1)
        yield
    finally:
        _run(put_back)


class _Plan(NamedTuple):
    """What is to be folded in a model that is in `state`, and how often it was."""

    state: tuple[Any, ...]
    pairs: list[Pair]
    uses: int


_plans: WeakKeyDictionary[nn.Module, _Plan] = WeakKeyDictionary()


def _state(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """All that decides which tensors go where: every attribute of every module, by value where it is a plain one."""
    facts: list[Any] = [x.shape[1:], x.dtype, x.device, *_autocast(x.device.type)]
    for module in model.modules():
        facts += (id(module), type(module))
        for value in vars(module).values():
            if isinstance(value, dict):  # parameters, buffers, modules, hooks
                facts += map(id, value.values())
            else:
                facts.append(value if value is None or isinstance(value, bool | int | float | str) else id(value))
    return tuple(facts)


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _look(model: nn.Module, x: Tensor) -> tuple[list[Pair], Any]:
    """What may be folded, and the logits for `x`."""
    if _may_fold(model, casts=_autocast(x.device.type)[0]):
        with _eager(model), torch.no_grad(), suppress(Exception), _Record() as record:
            logits = model(x)
            return _pairs(model, record, logits), logits
    return [], None


class _Record(TorchFunctionMode):
    """What every tensor of a forward pass was used for. It holds them all, since identity is by address."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[int] = Counter()
        self.layers: list[tuple[Tensor, Tensor]] = []  # output and weight of every layer
        self.norms: list[tuple[Tensor, Tensor]] = []  # input and running mean of every BatchNorm in eval mode
        self.held: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.held.append((args, kwargs, out))
        if not isinstance(out, _FACTS):
            used = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            self.uses.update(used)
        if func in _LAYERS and len(args) > 1:
            self.layers.append((out, args[1]))
        if func is F.batch_norm and kwargs.get("training") is False:  # so it hands its arguments on
            self.norms.append((args[0], args[1]))
        return out


def _pairs(model: nn.Module, record: _Record, logits: Any) -> list[Pair]:
    """The layers and norms that may become one."""
    owners: dict[int, list[nn.Module]] = {}
    for module in list(model.modules())[1:]:  # a plan that held the model itself would keep it alive
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            owners.setdefault(id(tensor), []).append(module)
    by_output: dict[int, tuple[nn.Module, torch.dtype]] = {}
    found: list[Pair] = []
    for out, weight in record.layers:
        owner = owners.get(id(weight), [])
        if len(owner) == 1 and owner[0]._parameters.get("weight") is weight and record.uses[id(weight)] == 1:
            by_output[id(out)] = owner[0], out.dtype
    answers = {id(leaf) for leaf in tree_leaves(logits)}
    calls = Counter(id(running_mean) for _, running_mean in record.norms)
    for x, running_mean in record.norms:
        if id(x) not in by_output or record.uses[id(x)] != 1 or id(x) in answers:
            continue
        norms = owners.get(id(running_mean), [])
        if len(norms) != 1 or calls[id(running_mean)] != 1:
            continue
        (norm,) = norms
        if isinstance(norm, _BatchNorm) and "forward" not in vars(norm):
            layer, dtype = by_output.pop(id(x))
            found.append((layer, norm, dtype))
    rest = [(layer, None, dtype) for layer, dtype in by_output.values() if layer.weight.dtype != dtype]
    return found + rest


@torch.no_grad()
def _fold(layer: nn.Module, norm: _BatchNorm | None, dtype: torch.dtype) -> Callable[[], None]:
    """Put the scale and shift of `norm` into `layer`, both in `dtype`; what is returned puts all back."""
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    scaled, shift = (weight, bias) if norm is None else _scaled(weight, bias, norm)
    # channels_last is the faster layout, also where the images come in the other: see docs/speed.md
    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    layer._parameters["weight"] = scaled.to(dtype, memory_format=layout)  # type: ignore[assignment]
    layer._parameters["bias"] = shift if shift is None else shift.to(dtype)  # type: ignore[assignment]
    if norm is not None:
        norm.forward = _rest(norm)  # type: ignore[method-assign, assignment]

    def put_back() -> None:
        layer._parameters["weight"], layer._parameters["bias"] = weight, bias
        if norm is not None:
            del norm.forward

    return put_back


def _scaled(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer behind which `norm` is no longer needed."""
    assert norm.running_mean is not None and norm.running_var is not None
    # In float64, which Apple's MPS lacks: a variance near zero makes a scale that float32 rounds badly.
    wide = torch.float32 if norm.running_var.device.type == "mps" else torch.float64
    scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)), shift


def _rest(norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    """What a norm does after it has normalised."""
    if isinstance(norm, BatchNormAct2d):
        return lambda x: norm.act(norm.drop(x))
    return lambda x: x


def _close(found: Any, wanted: Any) -> bool:
    """Whether logits are equal up to rounding, of which the root of the type's precision is far above.

    In half precision that root is no bound any more; a norm that is not what it seems is further off than 0.15.
    """
    if not isinstance(found, Tensor):
        return False
    tolerance = min(10 * torch.finfo(wanted.dtype).eps ** 0.5, 0.15)
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """A compiled model shows nothing of what it does, and these few inputs are not worth a compilation."""
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _may_fold(model: nn.Module, casts: bool) -> bool:
    """Whether there is a norm to fold or a weight to cast, and nothing that holds tensors out of sight."""
    modules = list(model.modules())
    return (casts or any(isinstance(module, _BatchNorm) for module in modules)) and not any(
        _has_hooks(module) or getattr(module, "grad_checkpointing", False) for module in modules
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _run(actions: Iterable[Callable[[], None]]) -> None:
    for action in actions:
        action()
