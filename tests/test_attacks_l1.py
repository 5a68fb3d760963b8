"""The l1 attack: its steps go to the best points of ball and box, image by image, and few steps make it strong."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor, nn

from timm_arat import PGD
from timm_arat.attacks._balls import BALLS
from timm_arat.attacks._frank_wolfe import FrankWolfe


class Curved(nn.Module):
    """A smooth network of images of any size and channels to 4 classes, which no batch statistic enters."""

    def __init__(self, channels: int = 3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2)
        self.fc = nn.Linear(16, 4)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv1(x.to(self.fc.weight.dtype)) * 3)
        return self.fc(F.gelu(self.conv2(x)).amax((2, 3))) * 10


def images(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images of which a third of the pixels lies at the edge of the box, and classes."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(*shape, generator=g, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=g) < 0.3, x.round(), x).to(dtype)
    return x, torch.randint(4, shape[:1], generator=g)


def reach(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv.double() - x.double()).abs().flatten(1).sum(1)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x).double(), y, reduction="none")


def climb(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, eps: float, steps: int) -> Tensor:
    """The attack from a given start, so that batches and their images can be compared."""
    return PGD(norm="l1", eps=eps, steps=steps).perturb(model, x, y, start=start).x_adv


# One step


@pytest.mark.parametrize("eps", [0.1, 1.3, 5.0, 100.0])
@pytest.mark.parametrize("outside", [False, True], ids=["", "centre outside the box"])
def test_the_first_step_is_the_best_point_of_ball_and_box(eps: float, outside: bool) -> None:
    """Against a solver of linear programs: x + plus - minus, both at least 0, their sum at most eps."""
    x, _ = images(5, 3, 3, 2, dtype=torch.float64)
    if outside:
        x = x * 1.1 - 0.002
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    start = BALLS["l1"].project(BALLS["l1"].start(x, eps), x, eps)
    got = BALLS["l1"].stepper(x, eps, eps, 7)(start, grad)
    for each, centre, g in zip(got, x, grad, strict=True):
        c, slope = centre.flatten().numpy(), g.flatten().numpy()
        eye = np.eye(len(c))
        box = np.vstack([np.hstack([eye, -eye]), np.hstack([-eye, eye]), np.ones((1, 2 * len(c)))])
        solved = linprog(np.hstack([-slope, slope]), A_ub=box, b_ub=np.hstack([1 - c, c, eps]))
        if solved.status == 2:  # the ball does not reach the box: its nearest point is all there is
            torch.testing.assert_close(each, centre.clamp(0, 1))
        else:
            gain = ((each - centre).flatten() @ g.flatten()).item()
            assert gain == pytest.approx(-solved.fun, rel=1e-9, abs=1e-12)


def test_a_longer_radius_moves_more_entries_and_each_to_the_edge() -> None:
    x = torch.full((1, 1, 4, 5), 0.75)
    grad = torch.linspace(-2, 1.7, 20).view(x.shape)  # downwards, where there is most room, it is steepest
    moved = [BALLS["l1"].stepper(x, eps, eps, 1)(x, grad) - x for eps in (0.6, 1.5, 3.0)]
    assert [(each != 0).sum().item() for each in moved] == [1, 2, 6], "0.75 down, or 0.25 up"
    torch.testing.assert_close(moved[1][0, 0, 0, :2], torch.tensor([-0.75, -0.75]))
    torch.testing.assert_close(moved[2][0, 0, 3, 4], torch.tensor(0.25))


def test_an_image_without_a_gradient_stays_where_it_is() -> None:
    x, _ = images(3, 3, 8, 8)
    start = BALLS["l1"].project(BALLS["l1"].start(x, 2.0), x, 2.0)
    step = BALLS["l1"].stepper(x, 2.0, 2.0, 3)
    grad = torch.randn_like(x)
    grad[1] = 0
    first = step(start, grad)
    second = step(first, torch.zeros_like(x))
    assert torch.equal(first[1], start[1]) and torch.equal(second, first)
    assert (first[0] != start[0]).any() and first.isfinite().all()


def test_an_infinitely_small_and_a_huge_gradient_give_the_same_steps() -> None:
    x, _ = images(2, 3, 8, 8)
    grad = torch.randn_like(x)
    steps = [FrankWolfe(x, 2.0, 2.0, 3)(x, grad * factor) for factor in (2.0**-120, 1.0, 2.0**120)]
    assert torch.equal(steps[0], steps[1]) and torch.equal(steps[1], steps[2])


# The attack


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 3, 96, 96)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [None, 0.5], ids=["", "short steps"])
def test_stays_in_ball_and_box_at_every_size_and_precision(shape: tuple[int, ...], dtype: Any, size: Any) -> None:
    x, y = images(*shape)
    model, before = Curved(shape[1], dtype), x.clone()
    torch.manual_seed(0)
    for eps in (0.5, 12.0):
        x_adv = PGD(norm="l1", eps=eps, steps=4, step_size=size)(model, x, y)
        assert torch.equal(x, before) and x_adv.dtype == x.dtype and x_adv.isfinite().all()
        assert 0 <= x_adv.min() and x_adv.max() <= 1
        assert (reach(x_adv, x) <= eps * (1 + 1e-6)).all() and (reach(x_adv, x) > 0).all()


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_no_image_depends_on_the_others_of_its_batch(steps: int) -> None:
    """In float64, where convolutions of one image and of eight round alike to 1e-12."""
    x, y = images(8, 3, 8, 8, dtype=torch.float64)
    model = Curved(dtype=torch.float64)
    start = BALLS["l1"].start(x, 3.0)
    together = climb(model, x, y, start, eps=3.0, steps=steps)
    for i in range(len(x)):
        alone = climb(model, x[i : i + 1], y[i : i + 1], start[i : i + 1], eps=3.0, steps=steps)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-9)
    assert not torch.equal(together, start)


def test_more_steps_are_not_weaker() -> None:
    model, (x, y) = Curved(), images(64, 3, 12, 12)
    torch.manual_seed(0)
    losses = [loss_of(model, PGD(norm="l1", eps=2.0, steps=n)(model, x, y), y).mean().item() for n in (1, 3, 10, 40)]
    assert losses[0] > 1.2 * loss_of(model, x, y).mean().item()
    assert all(more > 0.99 * less for less, more in zip(losses, losses[1:], strict=False)), losses
    assert losses[-1] > losses[0]


def test_is_stronger_than_steps_over_a_fixed_share_of_the_entries() -> None:
    """SLIDE (arXiv:1904.13000): 5 % of the entries share each step of 2.5 eps / steps."""
    model, (x, y) = Curved(), images(64, 3, 12, 12)
    eps, steps = 2.0, 10
    ball = BALLS["l1"]
    torch.manual_seed(0)
    x_adv = start = ball.project(ball.start(x, eps), x, eps)
    count = round(0.05 * x[0].numel())
    for _ in range(steps):
        x_in = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_in), y, reduction="sum"), x_in)
        chosen = grad.abs().flatten(1).topk(count, dim=1).indices
        share = torch.zeros_like(grad.flatten(1)).scatter_(1, chosen, 2.5 * eps / steps / count).view_as(grad)
        x_adv = ball.project(x_adv + share * grad.sign(), x, eps)
    slide = loss_of(model, x_adv, y).mean()
    assert slide > 1.2 * loss_of(model, x, y).mean(), "it is an attack"
    assert loss_of(model, climb(model, x, y, start, eps=eps, steps=steps), y).mean() > 1.05 * slide


def test_the_default_step_is_the_whole_radius_and_a_short_one_goes_less_far() -> None:
    assert PGD(norm="l1", eps=3.0, steps=50).step_length == 3.0
    x = torch.full((1, 1, 4, 4), 0.5)
    grad = torch.linspace(-1, 1, 16).view(x.shape)
    far = BALLS["l1"].stepper(x, 3.0, 3.0, 2)(x, grad) - x
    near = BALLS["l1"].stepper(x, 3.0, 0.75, 2)(x, grad) - x
    torch.testing.assert_close(near, far / 4)
    assert reach(x + far, x).item() == pytest.approx(3.0)
