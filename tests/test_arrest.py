"""ARREST-style training: its loss and gradients against the formula, and the noisy replay."""

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_arat import ARREST, PGD, in_pixels
from timm_arat.losses import angular_distance
from timm_arat.modes import evaluating

ATTACK = PGD(eps=0.1, steps=1)


def backbone(seed: int = 0, channels: tuple[int, int] = (4, 8)) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet20_cifar", num_classes=5, layers=(1, 1), channels=channels, zero_init_last=False)


def build(**settings) -> ARREST:
    return ARREST(backbone(), teacher=backbone(1), attack=ATTACK, **settings).double().train()


def images() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 3, 4, 0]), (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def representation(model: nn.Module, x: Tensor) -> Tensor:
    """What the classifier's linear layer is given."""
    return model.forward_features(x).mean((2, 3))


def angle(a: Tensor, b: Tensor) -> Tensor:
    """NxD to N, by the law of cosines instead of the scalar product."""
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    return (1 - (a - b).square().sum(1) / 2).acos() / math.pi


def test_loss_gradients_and_statistics_are_the_formulas():
    x, y, x_adv = images()
    method = build(weight=3.0, from_teacher=False)
    twin = copy.deepcopy(method)
    loss = method(x, y, x_adv)["loss"]
    loss.backward()
    features = representation(twin.model, x_adv)
    p = twin.model.get_classifier()(features).softmax(1)
    target = representation(method.teacher.module.network.model, x)
    expected = -sum(p[i, label].log() for i, label in enumerate(y)) / 6 + 3 * angle(features, target).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for (name, a), b in zip(method.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-11, msg=name)
    for (name, a), b in zip(method.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_an_image_that_drifted_beyond_the_threshold_is_replaced_by_a_noisy_one():
    x, y, _ = images()
    method = build(from_teacher=False)
    torch.manual_seed(3)
    x_adv = ATTACK(method.network, x, y)
    with torch.no_grad():
        drift = angle(representation(copy.deepcopy(method.model).eval(), x_adv), method.teacher(x))
    threshold = float(drift.sort().values[2:4].mean())
    chosen = drift > threshold
    method = build(from_teacher=False, threshold=threshold, noise=0.01)
    torch.manual_seed(3)
    seen, found = method.perturb(x, y)
    assert torch.equal(seen, x) and 0 < int(chosen.sum()) < 6
    assert torch.equal(found[~chosen], x_adv[~chosen])
    noise = (found - x)[chosen].abs()
    assert noise.max() <= 0.01 and noise.max() > 0.009 and 0 <= found.min() <= found.max() <= 1
    log = method.terms(x, y, found).log
    assert float(log["replayed"]) == pytest.approx(float(chosen.float().mean()))


def test_the_network_starts_as_the_teacher_and_the_teacher_stays():
    method = build()
    start = copy.deepcopy(method.model.state_dict())
    teacher = method.teacher.module.network.model.state_dict()
    assert all(torch.equal(value, start[key]) for key, value in teacher.items())
    x, y, x_adv = images()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method(x, y, x_adv)["loss"].backward()
    optimizer.step()
    assert all(torch.equal(value, start[key]) for key, value in teacher.items())
    assert not all(torch.equal(value, start[key]) for key, value in method.model.state_dict().items())


def test_the_network_takes_the_teacher_s_normalisation_with_its_weights():
    teacher, model = backbone(1), backbone()
    teacher.pretrained_cfg = teacher.pretrained_cfg | {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.2)}
    method = ARREST(model, teacher=teacher)
    x = torch.rand(2, 3, 16, 16)
    with evaluating(method), torch.no_grad():
        assert torch.equal(method.network(x), in_pixels(teacher).eval()(x))
    assert method.model.pretrained_cfg["mean"] == (0.5, 0.4, 0.3), "as an export says it"


def test_a_teacher_of_another_shape_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="from_teacher=False"):
        ARREST(backbone(), teacher=backbone(1, channels=(4, 16)))
    with pytest.raises(ValueError, match="the teacher has 16 features, the model 8"):
        ARREST(backbone(), teacher=backbone(1, channels=(4, 16)), from_teacher=False)


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"threshold": -0.1}, {"noise": 8.0}], ids=str)
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(**wrong)


def test_the_angular_distance_is_the_angle_over_pi_and_has_finite_gradients_everywhere():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.0, 3.0], [1.0, 1.0], [5.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    found = angular_distance(a, b)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25, 0.0, 1.0], dtype=torch.float64), atol=1e-3, rtol=0)
    (grad,) = torch.autograd.grad(found.sum(), a)
    assert grad.isfinite().all() and grad[1].abs().max() > 0.1
