"""MART's loss and gradients against the formula, image by image and class by class."""

import math

import pytest
import timm
import torch

import timm_arat


def formula(clean: torch.Tensor, adv: torch.Tensor, y: torch.Tensor, weight: float) -> torch.Tensor:
    """The authors' loss in plain loops over probabilities, without their 1e-12."""
    total = torch.zeros((), dtype=torch.float64)
    for image in range(len(y)):
        p, q, label = clean[image].softmax(0), adv[image].softmax(0), int(y[image])
        others = [q[k] for k in range(len(q)) if k != label]
        boosted = -q[label].log() - (1.0001 - max(others)).log()
        divergence = sum(p[k] * (p[k].log() - q[k].log()) for k in range(len(p)))
        total = total + boosted + weight * (1 - p[label]) * divergence
    return total / len(y)


class Gives(torch.nn.Module):
    """A network that has made up its mind."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.fixture
def method() -> timm_arat.MART:
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=5, layers=(1, 1), channels=(4, 8))
    return timm_arat.MART(model, attack=timm_arat.PGD(eps=0.1, steps=1), weight=5.0).double()


def test_loss_and_gradients_are_the_formulas(method):
    x, y = torch.rand(6, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    x_adv = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    loss = method(x, y, x_adv)["loss"]
    parameters = list(method.parameters())
    grads = torch.autograd.grad(loss, parameters)
    # In the same order, so that the statistics of each batch are the same.
    expected = formula(method.network(x), method.network(x_adv), y, 5.0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-12)


def test_the_margin_is_to_the_runner_up_where_the_label_is_first(method):
    logits = torch.tensor([[4.0, 1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    method.network = Gives(logits)
    terms = method.terms(torch.zeros(2, 3, 1, 1), torch.tensor([0, 2]), torch.zeros(2, 3, 1, 1))
    p = logits.softmax(-1)
    expected = -(math.log(1.0001 - p[0, 1]) + math.log(1.0001 - p[1, 1])) / 2
    assert float(terms.losses["margin"]) == pytest.approx(expected, rel=1e-12)
    assert float(terms.losses["kl"]) == 0


def test_a_certain_wrong_prediction_has_a_finite_loss(method):
    logits = torch.tensor([[0.0, 90.0, 0.0, 0.0, 0.0]], requires_grad=True)
    method.network = Gives(logits)
    loss = method.terms(torch.zeros(1, 3, 1, 1), torch.tensor([0]), torch.zeros(1, 3, 1, 1)).loss()
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and grad.isfinite().all()


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="weight=-1"):
        timm_arat.MART(timm.create_model("resnet20_cifar"), weight=-1.0)


def test_of_mixed_labels_no_class_of_the_mixture_is_a_wrong_one(method):
    share = torch.tensor([[0.55, 0.45, 0, 0, 0]], dtype=torch.float64)
    smooth = 0.9 * share + 0.02
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    for y in (share, smooth):
        method.network = Gives(y.clamp_min(1e-9).log())
        found = float(method.terms(x, y, x).losses["margin"])
        assert found == pytest.approx(-math.log(1.0001 - float(y.amin())), abs=1e-6)
