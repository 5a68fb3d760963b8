"""Run a frozen network with its BatchNorms folded into the layers before them; the ground floor, true of any network.

In eval mode a BatchNorm is a constant scale and shift of each channel. Behind a convolution or a linear layer both go
into that layer's weight and bias, and the norm costs nothing any more: no pass over the activations, forward or
backward, and none kept for it. Under autocast a weight is also cast once, which autocast does at every pass where the
weight is frozen.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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


@contextmanager
def folded(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Inside, `model` computes what it computes, up to rounding, with as many BatchNorms folded as is safe.

    For a model in eval mode whose parameters and buffers nobody changes or asks for inside. A norm is folded where one
    forward pass over `x` shows that the output of a layer went there and nowhere else, and that the layer ran once with
    a plain parameter as its weight (standardised and parametrised weights stay as they are). Whichever branch of a
    split norm is active then is folded. Under autocast, a layer that computes with its own weight has it cast already.
    A model stays as it is that has hooks or checkpoints gradients (both hold tensors which that pass does not show),
    that cannot run on `x`, or whose logits for `x` would change.

    Args:
        model: Any network.
        x: An input or a few, for the pass.
    """
    with Plan().folded(model, x):
        yield


class Plan:
    """What may be folded in one model, found at the first use and kept for the next ones; see `folded`.

    It serves one model whose branch is always the same, and belongs to whoever attacks it again and again. What is
    found holds for the model as it was then: make a new plan where its layers or the way through them may have changed,
    and now and then in training, since a norm's statistics may become such that folding them rounds too much.
    A copy of a plan is empty, because it will serve a copy of the model.
    """

    def __init__(self) -> None:
        # By what the images and the autocast are like: on these depends in which type a layer computes.
        self._found: dict[tuple[Any, ...], list[Pair]] = {}

    def __deepcopy__(self, memo: Any) -> "Plan":
        return Plan()

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan, ()

    @contextmanager
    def folded(self, model: nn.Module, x: Tensor) -> Iterator[None]:
        """As the function `folded`, by what was found for images like `x` (NxCxHxW, N at least 1) before."""
        autocast = _autocast(x.device.type)
        key = (*x.shape[1:], x.dtype, x.device, *autocast)
        pairs, known = self._found.get(key), key in self._found
        logits = None
        if not _may_fold(model, casts=autocast[0]):
            pairs = []  # hooks may have come since
        elif pairs is None:
            pairs, logits = _look(model, x)
        put_back: list[Callable[[], None]] = []
        try:
            for pair in pairs:
                put_back.append(_fold(*pair))
            if logits is not None and pairs and not _proved(model, x, logits):
                _run(put_back)
                put_back.clear()
                pairs = []
            if not known and logits is not None:  # a model that could not run on `x` is tried again
                self._found[key] = pairs
            yield
        finally:
            _run(put_back)


def _autocast(device: str) -> tuple[bool, torch.dtype | None]:
    if not torch.amp.is_autocast_available(device):
        return False, None
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _look(model: nn.Module, x: Tensor) -> tuple[list[Pair], Any]:
    """What may be folded, and the logits for `x`; no logits where the model was not run to the end."""
    record, logits = _Record(), None
    if len(x):
        with _eager(model), torch.no_grad(), suppress(Exception), record:
            logits = model(x)
    return ([] if logits is None else _pairs(model, record, logits)), logits


class _Record(TorchFunctionMode):
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


def _pairs(model: nn.Module, record: _Record, logits: Any) -> list[Pair]:
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


def _proved(model: nn.Module, x: Tensor, logits: Any) -> bool:
    """Whether the model, folded, has the logits that it had."""
    with _eager(model), torch.no_grad(), suppress(Exception):
        return _close(model(x), logits)
    return False


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
