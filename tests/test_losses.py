"""The loss terms against hand-computed values; the stop-gradient by gradients that are exactly zero."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from timm_arat.losses import prediction_divergence, stop_grad_cosine, symmetric_cosine

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = [stop_grad_cosine, symmetric_cosine]

# Pairs of vectors and 1 - cos between them, by hand: equal direction, right angle, opposite, 3-4-5.
A = [[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [3.0, 4.0]]
B = [[5.0, 0.0], [1.0, 0.0], [-2.0, -2.0], [1.0, 0.0]]
DISTANCES = [0.0, 1.0, 2.0, 1 - 3 / 5]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("i", range(4))
def test_one_pair_by_hand(loss: Loss, i: int) -> None:
    value = loss(torch.tensor(A[i : i + 1]), torch.tensor(B[i : i + 1]))
    assert value.shape == () and value.item() == pytest.approx(DISTANCES[i], abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_is_the_mean_over_samples(loss: Loss) -> None:
    assert loss(torch.tensor(A), torch.tensor(B)).item() == pytest.approx(sum(DISTANCES) / 4, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_length_of_a_feature_does_not_matter(loss: Loss) -> None:
    a, b = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    scale = torch.rand(5, 1).double() + 0.1
    torch.testing.assert_close(loss(a * scale, b / scale), loss(a, b))


def test_the_target_gets_no_gradient_at_all() -> None:
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    stop_grad_cosine(a, b).backward()
    assert b.grad is None and a.grad is not None and a.grad.norm() > 0
    # Also where the target is part of a graph with the online side.
    z = torch.randn(5, 7, requires_grad=True)
    shared = torch.stack([z, z * torch.linspace(1, 2, 7)])
    (gradient,) = torch.autograd.grad(stop_grad_cosine(shared[0], shared[1]), shared)
    assert torch.equal(gradient[1], torch.zeros(5, 7)) and gradient[0].norm() > 0


def test_the_online_gradient_is_that_of_a_constant_target() -> None:
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    a.requires_grad_()
    unit = b / b.norm(dim=1, keepdim=True)
    along = (a * unit).sum(1, keepdim=True)
    norm = a.norm(dim=1, keepdim=True)
    by_hand = -(unit - along * a / norm**2) / norm / 5  # d(-cos)/da, over 5 samples
    (gradient,) = torch.autograd.grad(stop_grad_cosine(a, b), a)
    torch.testing.assert_close(gradient, by_hand.detach())


def test_the_symmetric_term_pulls_both_sides() -> None:
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    forth = torch.autograd.grad(symmetric_cosine(a, b), (a, b))
    back = torch.autograd.grad(symmetric_cosine(b, a), (a, b))
    for one, other, side in zip(forth, back, (a, b), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(
            one, torch.autograd.grad(stop_grad_cosine(side, b if side is a else a), side)[0], msg="half of the two"
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_a_feature_of_zeros_gives_finite_gradients(loss: Loss) -> None:
    a = torch.zeros(2, 3, requires_grad=True)
    value = loss(a, torch.ones(2, 3))
    value.backward()
    assert value.item() == pytest.approx(1.0) and a.grad is not None and a.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_arguments_are_not_changed(loss: Loss) -> None:
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    before = a.clone(), b.clone()
    loss(a, b)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


def test_the_divergence_is_the_hand_computed_one_with_the_clean_prediction_first() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).double(), torch.tensor([[0.25, 0.75], [0.25, 0.75]]).double()
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2  # the second pair is equal
    assert prediction_divergence(p.log() + 3, q.log()).item() == pytest.approx(expected, abs=1e-12)
    assert prediction_divergence(p.log(), p.log()).item() == 0
    far = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])  # no logarithm of a rounded zero
    assert prediction_divergence(*far).item() == pytest.approx(200)


def test_both_predictions_of_the_divergence_have_their_gradient() -> None:
    """By hand: p (log p/q - KL) to the clean logits, q - p to the adversarial ones, over N."""
    z, z_adv = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    prediction_divergence(z, z_adv).backward()
    p, q = z.detach().softmax(1), z_adv.detach().softmax(1)
    log = (p / q).log()
    torch.testing.assert_close(z.grad, p * (log - (p * log).sum(1, keepdim=True)) / 4)
    torch.testing.assert_close(z_adv.grad, (q - p) / 4)
