"""Differentiate a part of a loss before the rest is computed, so that both need not be held at once."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def differentiate_early(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """`loss`, whose activations are free from here on: its gradients are taken now and handed out by `backward`.

    The sum of this and of other terms has the gradients that it would have had, and one backward pass, so that
    distributed training, accumulation and hooks see what they always see. Under fp16, where a gradient scaler must come
    before the gradients, and where no gradients are recorded, `loss` comes back as it is.

    Args:
        loss: A scalar that no other term shares activations with.
        parameters: What it may depend on.
    """
    device = loss.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    if half or not loss.requires_grad:
        return loss
    trained = [p for p in parameters if p.requires_grad]
    grads = torch.autograd.grad(loss, trained, allow_unused=True)
    touched = [(p, grad) for p, grad in zip(trained, grads, strict=True) if grad is not None]
    result: Tensor = _Ready.apply(loss.detach(), [grad for _, grad in touched], *(p for p, _ in touched))
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
        grads, ctx.grads = ctx.grads[::-1], None
        # Each is freed once it is scaled; not in place, since two parameters may share a gradient.
        return None, None, *(grads.pop() * upstream for _ in range(len(grads)))
