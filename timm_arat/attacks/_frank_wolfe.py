"""The steps of the l1 attack: Frank-Wolfe over the ball and the pixel box together.

For a loss that is linear, the best point of both moves the entries of largest gradient to the edge of the box, one
after the other, until their way adds up to eps. So the image itself says how many entries it takes, and nothing is left
to tune: a fixed share of the entries that fits one network is several times too large for the next. Each step goes part
of the way to that point, from all of it in the first step to the n-th part of it in the last of n. A point between two
points of ball and box lies in both, so there is nothing to project. The gradient is averaged over the steps, which
keeps the chosen entries from alternating.

Source: Frank-Wolfe with momentum as an attack, arXiv:1811.10828; the best point of l1 ball and box, arXiv:2103.01208,
Sec. 3. Ours: the share of the way falls linearly, and the gradient of one step has largest entry 1 in the average.
"""

import torch
from torch import Tensor

MOMENTUM = 0.5  # how much of the gradients so far is kept at each step


class FrankWolfe:
    """The steps of one climb from anywhere in ball and box: `step(x_adv, grad)` is the next x_adv.

    Args:
        x: Centre of the ball, NxCxHxW; it may lie outside [0, 1], x_adv never does.
        eps: Radius of the ball in the l1 norm of one image, in pixels of [0, 1].
        size: Length of the first step, of which `eps` and more is the whole way to the best point.
        steps: How many steps the climb has.
    """

    def __init__(self, x: Tensor, eps: float, size: float, steps: int) -> None:
        # Half precision is too coarse to add up a way of many entries.
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.nearest = x.to(self.dtype).clamp(0, 1)
        self.budget = (eps - (self.nearest - x).flatten(1).abs().sum(1, keepdim=True)).clamp_min(0)
        self.share, self.steps, self.done = min(size / eps, 1.0), steps, 0
        self.average = torch.zeros_like(self.nearest)

    def __call__(self, x_adv: Tensor, grad: Tensor) -> Tensor:
        grad = grad.to(self.dtype)
        largest = grad.abs().amax((1, 2, 3), keepdim=True)
        self.average = MOMENTUM * self.average + grad / largest.clamp_min(torch.finfo(self.dtype).tiny)
        moves = (largest > 0).to(self.dtype)  # an image without a gradient stays where it is
        way = self.share * (1 - self.done / self.steps) * moves
        self.done += 1
        return x_adv.to(self.dtype).lerp(self.best(self.average), way).to(x_adv.dtype)

    def best(self, grad: Tensor) -> Tensor:
        """The point of ball and box at which a loss with gradient `grad` everywhere is highest, NxCxHxW."""
        room = torch.where(grad > 0, 1 - self.nearest, self.nearest) * (grad != 0)
        # Entries that have no room come last.
        order = (grad.abs() * (room > 0)).flatten(1).argsort(dim=1, descending=True, stable=True)
        room = room.flatten(1).gather(1, order)
        moved = torch.minimum(room, (self.budget - (room.cumsum(1) - room)).clamp_min(0))
        way = torch.zeros_like(room).scatter_(1, order, moved).view_as(grad)
        return (self.nearest + way * grad.sign()).clamp(0, 1)
