"""Differentiate a part of a loss before the rest is computed, so that both need not be held at once."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Early:
    """A term of a loss whose activations are free from here on: its gradients are taken now.

    `term()` plus other terms has the gradients that the plain sum would have had, in one backward pass, so that
    distributed training and accumulation see what they always see; a hook on a parameter itself runs here too. Under
    fp16, where a gradient scaler must come before the gradients, and where none are recorded, the term stays as it is.

    Args:
        loss: A scalar that no other term shares activations with.
        parameters: What it may depend on.
    """

    def __init__(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        device = loss.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        self._loss = loss
        self._grads: list[tuple[nn.Parameter, Tensor]] = []
        if loss.requires_grad and not half:
            trained = [p for p in dict.fromkeys(parameters) if p.requires_grad]
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
            self._grads = [(p, grad) for p, grad in zip(trained, grads, strict=True) if grad is not None]
            self._loss = loss.detach()

    def term(self) -> Tensor:
        """The term, once. Ask after the other terms are computed: what is recorded last is handed out first, and each
        gradient that the others find joins the one that is there; asked before, both sets would be held at once."""
        if not self._grads:
            return self._loss
        grads, self._grads = self._grads, []
        result: Tensor = _Ready.apply(self._loss, [grad for _, grad in grads], *(p for p, _ in grads))
        return result


class _Ready(torch.autograd.Function):
    """A scalar whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: list[Tensor], *parameters: nn.Parameter) -> Tensor:
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the loss was differentiated before, and its gradients are handed out once")
        grads, ctx.grads = ctx.grads, None
        # To ask a GPU would be to wait for it. Not to scale saves a twentieth of a step of ResNet-50 on a few images.
        if upstream.device.type == "cpu" and upstream == 1:
            # Two that share memory, by a view, would be scaled twice by whoever scales in place.
            places = [grad.untyped_storage().data_ptr() for grad in grads]
            shared = {place for place, count in Counter(places).items() if count > 1}
            alone = [grad.clone() if place in shared else grad for grad, place in zip(grads, places, strict=True)]
            return None, None, *alone
        # Each is freed once it is scaled; not in place, since two parameters may share a gradient.
        grads.reverse()
        return None, None, *(grads.pop() * upstream for _ in range(len(grads)))
