"""The search of projected gradient descent: start, gradient, step, project."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..fold import Plan
from ._balls import BALLS
from ._objectives import CrossEntropy, Objective, precise
from ._pgd import PGD
from ._quiet import gradients, quiet


class Perturbed(NamedTuple):
    """What an attack found.

    Attributes:
        x_adv: Adversarial images, NxCxHxW in [0, 1].
        zero_grad: Images with a step whose input gradient was wholly zero or not finite, N bool: such a step moves
            nothing, so the attack was weaker than its settings say.
    """

    x_adv: Tensor
    zero_grad: Tensor


def search(
    attack: PGD,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    start: Tensor | None = None,
    objective: Objective | None = None,
) -> Perturbed:
    """`attack.perturb` without its checks: the centre of the ball may lie outside [0, 1], `x_adv` never does."""
    with ready(model, attack, x):
        return climb(attack, model, x, objective or CrossEntropy(y, attack.targeted), start)


@contextmanager
def ready(model: nn.Module, attack: PGD, x: Tensor, plan: Plan | None = None) -> Iterator[None]:
    """Inside, `model` is as `attack` sees it: in its mode, with frozen parameters, and folded where that is exact.

    Args:
        x: The images to attack, NxCxHxW; the first one is used to find out what may be folded.
        plan: What was found to be foldable before; without one it is looked for again.
    """
    with quiet(model, attack.norm_mode), gradients():
        with (plan or Plan()).folded(model, x[:1]) if attack.norm_mode == "eval" else nullcontext():
            yield


def climb(attack: PGD, model: nn.Module, x: Tensor, objective: Objective, start: Tensor | None = None) -> Perturbed:
    """The search itself, for a model that is `ready`."""
    x = x.clone() if x.is_inference() else x.detach()  # autograd takes no inference tensor
    if attack.norm_mode == "eval" and isinstance(objective, CrossEntropy):
        # Each image's gradient is scaled, so what rises and falls with its loss is as good and holds more.
        objective = objective.steady
    x_adv, zero_grad = _climb(attack, model, x, objective, start)
    if attack.restarts == 1:
        return Perturbed(x_adv, zero_grad)
    best = _Best(x)
    best.update(x_adv, _loss(model, x_adv, objective))
    for _ in range(attack.restarts - 1):
        x_adv, stuck = _climb(attack, model, x, objective)
        best.update(x_adv, _loss(model, x_adv, objective))
        zero_grad |= stuck
    return Perturbed(best.x_adv, zero_grad)


def _climb(attack: PGD, model: nn.Module, x: Tensor, objective: Objective, start: Tensor | None = None) -> Perturbed:
    """The adversarial images of one start: `start` where it is given and not NaN."""
    ball = BALLS[attack.norm]
    # Projected once more: x + noise may round to just outside the ball.
    x_adv = ball.project(ball.start(x, attack.radius), x, attack.radius) if attack.random_start else x
    if start is not None:
        x_adv = ball.project(torch.where(start.isnan(), x_adv, start.detach()), x, attack.radius)
    step = ball.stepper(x, attack.radius, attack.step_length, attack.steps)
    best = _Best(x)
    zero_grad = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(attack.steps):
        loss, grad = _loss_and_gradient(model, x_adv, objective, apart=attack.norm_mode == "eval")
        if attack.keep_best:
            best.update(x_adv, loss)
        zero_grad |= grad.abs().amax((1, 2, 3)) == 0
        x_adv = step(x_adv, grad)
    if attack.keep_best:
        best.update(x_adv, _loss(model, x_adv, objective))
        x_adv = best.x_adv
    return Perturbed(x_adv, zero_grad)


class _Best:
    """The highest loss of each image so far, and where it was."""

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x
        self.loss = torch.full((len(x),), -torch.inf, device=x.device)

    def update(self, x_adv: Tensor, loss: Tensor) -> None:
        better = loss > self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.x_adv = torch.where(better.view(-1, 1, 1, 1), x_adv, self.x_adv)


def _loss(model: nn.Module, x_adv: Tensor, objective: Objective) -> Tensor:
    with torch.no_grad():
        return objective(precise(model(x_adv)))


def _loss_and_gradient(model: nn.Module, x_adv: Tensor, objective: Objective, apart: bool) -> tuple[Tensor, Tensor]:
    """Loss per image (N), and the gradient of their sum to the pixels (NxCxHxW) up to a positive factor.

    The factor is each image's own where images are looked at `apart`: there it changes no direction. Statistics of the
    batch pass every image's gradient on to every other image, so there one factor is common to all, a power of two,
    which changes no digit either.
    """
    x_adv = x_adv.detach().requires_grad_()
    logits = model(x_adv)
    leaf = precise(logits.detach()).requires_grad_()
    loss = objective(leaf)
    (upstream,) = torch.autograd.grad(loss.sum(), leaf)
    largest = upstream.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(upstream.dtype).tiny)
    if apart or not len(largest):
        upstream = upstream / largest
    else:
        largest = largest.nan_to_num(0, 0).amax(0, keepdim=True)
        upstream = upstream * (torch.frexp(largest).mantissa / largest)
    (grad,) = torch.autograd.grad(logits, x_adv, upstream.to(logits.dtype))
    return loss.detach(), grad.nan_to_num_(0, 0, 0)


def check(x: Tensor, y: Tensor, start: Tensor | None = None) -> None:
    """ValueError unless these are images in [0, 1], their labels, and a start of their shape."""
    for name, each in (("images", x), ("labels", y)):
        if not isinstance(each, Tensor):
            raise ValueError(
                f"{name} must be a torch.Tensor; these are of {type(each).__name__}: torch.as_tensor makes one"
            )
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"images must be NxCxHxW floats in [0, 1]; these are {tuple(x.shape)} {x.dtype}")
    mixed = y.ndim == 2 and y.is_floating_point()
    if len(y) != len(x) or not (mixed or (y.ndim == 1 and not y.is_floating_point())):
        raise ValueError(
            f"labels must be {len(x)} integers, or floats {len(x)}xK (the share of each class), for {len(x)} images; "
            f"these are {tuple(y.shape)} {y.dtype}"
        )
    if start is not None and start.shape != x.shape:
        raise ValueError(f"start must be of the images' shape {tuple(x.shape)}; it is {tuple(start.shape)}")
    if len(x):
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images must be in [0, 1]; these are in [{low:.4g}, {high:.4g}]: "
                "attack timm_arat.in_pixels(model), which normalises inside, with unnormalised images"
            )
