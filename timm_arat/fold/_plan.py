"""What may be folded in one model, found by one pass and proved by another, and done as often as it is asked for."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._layer import fold
from ._record import Pair, Record, pairs_of


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
                put_back.append(fold(*pair))
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
    record, logits = Record(), None
    if len(x):
        with _eager(model), torch.no_grad(), suppress(Exception), record:
            logits = model(x)
    return ([] if logits is None else pairs_of(model, record, logits)), logits


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
