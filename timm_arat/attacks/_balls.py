"""The three threat models: where an attack starts, how it steps, and what it may reach.

Shapes: x, x_adv and grad are NxCxHxW with x in [0, 1]; every function returns a new tensor. Norms are over one image,
and nothing that is done to an image depends on the others of its batch. `stepper(x, eps, size, steps)` gives the steps
of one climb in the ball of radius eps around x: a function from x_adv in ball and box and the gradient there to the
next x_adv in both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._frank_wolfe import FrankWolfe

Stepper = Callable[[Tensor, Tensor], Tensor]


def _flat_norm(t: Tensor, order: float) -> Tensor:
    """Per-image norm, shaped Nx1x1x1."""
    return torch.linalg.vector_norm(t, ord=order, dim=(1, 2, 3), keepdim=True)


def _shrink_until_inside(shrink: Callable[[Tensor], Tensor], most: Tensor, eps: float, order: float) -> Tensor:
    """`shrink(t)` at the least t in [0, most] that brings its norm to eps, per image, by bisection to 2^-24 of most."""
    lower = torch.zeros_like(most)
    upper = torch.where(_flat_norm(shrink(lower), order) <= eps, lower, most)
    for _ in range(24):
        middle = (lower + upper) / 2
        inside = _flat_norm(shrink(middle), order) <= eps
        lower, upper = torch.where(inside, lower, middle), torch.where(inside, middle, upper)
    return shrink(upper)


@dataclass(frozen=True)
class Linf:
    """max |x_adv - x| <= eps (PGD, arXiv:1706.06083)."""

    @staticmethod
    def start(x: Tensor, eps: float) -> Tensor:
        return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp_(0, 1)

    @classmethod
    def stepper(cls, x: Tensor, eps: float, size: float, steps: int) -> Stepper:
        return lambda x_adv, grad: cls.project(cls.step(x_adv, grad, size), x, eps)

    @staticmethod
    def step(x_adv: Tensor, grad: Tensor, size: float) -> Tensor:
        return x_adv + grad.sign().mul_(size)

    @staticmethod
    def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
        return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp_(0, 1)


@dataclass(frozen=True)
class L2:
    """||x_adv - x||_2 <= eps, with the exact projection onto the ball and the pixel box together."""

    @staticmethod
    def start(x: Tensor, eps: float) -> Tensor:
        # Uniform in the ball: a uniform direction and the radius of a uniform volume.
        noise = torch.randn_like(x)
        radius = eps * torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
        return (x + noise * (radius / _flat_norm(noise, 2))).clamp_(0, 1)

    @classmethod
    def stepper(cls, x: Tensor, eps: float, size: float, steps: int) -> Stepper:
        return lambda x_adv, grad: cls.project(cls.step(x_adv, grad, size), x, eps)

    @staticmethod
    def step(x_adv: Tensor, grad: Tensor, size: float) -> Tensor:
        # Scaled to largest entry 1 first: squares of small gradients would underflow in the norm.
        grad = grad / _flat_norm(grad, torch.inf).clamp_min(torch.finfo(grad.dtype).tiny)
        return x_adv + grad * (size / _flat_norm(grad, 2).clamp_min(torch.finfo(grad.dtype).tiny))

    @staticmethod
    def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
        # Nearest point: scale, clip to the box (Karush-Kuhn-Tucker). Scaling alone reaches the ball; clipping then
        # shortens, so less scaling may do.
        delta, low, high = x_adv - x, -x, 1 - x
        most = (_flat_norm(delta, 2) / eps - 1).clamp_min(0)
        return x + _shrink_until_inside(lambda t: torch.clamp(delta / (1 + t), low, high), most, eps, 2)


@dataclass(frozen=True)
class L1:
    """||x_adv - x||_1 <= eps, by Frank-Wolfe's steps, with the exact projection of starts onto the ball and the pixel
    box together."""

    @staticmethod
    def start(x: Tensor, eps: float) -> Tensor:
        # Uniform in the ball: signed exponentials over the sum of one exponential more than there are entries.
        magnitude = torch.empty_like(x).exponential_()
        total = magnitude.sum((1, 2, 3), keepdim=True)
        total += torch.empty_like(total).exponential_()
        sign = torch.randint_like(x, 2) * 2 - 1
        return (x + sign * magnitude * (eps / total)).clamp_(0, 1)

    @staticmethod
    def stepper(x: Tensor, eps: float, size: float, steps: int) -> Stepper:
        return FrankWolfe(x, eps, size, steps)

    @staticmethod
    def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
        # Nearest point: shrink towards 0 by a threshold, clip to the box.
        delta, low, high = x_adv - x, -x, 1 - x

        def shrink(threshold: Tensor) -> Tensor:
            return torch.clamp(delta.sign() * (delta.abs() - threshold).clamp_min(0), low, high)

        return x + _shrink_until_inside(shrink, _flat_norm(delta, torch.inf), eps, 1)


BALLS: dict[str, type[Linf] | type[L2] | type[L1]] = {"linf": Linf, "l2": L2, "l1": L1}
