"""LBGAT's loss, gradients and statistics against the formula, entry by entry."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_arat import LBGAT, PGD
from timm_arat.norm import norm_branch, split_norms


def backbone(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet20_cifar", num_classes=5, layers=(1, 1), channels=(4, 8))


def build(**settings) -> LBGAT:
    attack = PGD(eps=0.1, steps=1)
    return LBGAT(backbone(), teacher=backbone(1), attack=attack, **settings).double().train()


def images() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 3, 4, 0]), (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def formula(adv: Tensor, clean: Tensor, teacher: Tensor, y: Tensor, beta: float, target: Tensor) -> Tensor:
    """The authors' loss in plain loops; NxK each."""
    n, k = adv.shape
    total = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        p, q, g = (logits[i].softmax(0) for logits in (clean, adv, teacher))
        squares = sum((adv[i, j] - target[i, j]) ** 2 for j in range(k)) / k
        total = total + squares - g[int(y[i])].log() + beta * sum(p[j] * (p[j] / q[j]).log() for j in range(k))
    return total / n


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(("beta", "split"), [(0.0, "none"), (6.0, "none"), (6.0, "batch")])
def test_loss_gradients_and_statistics_are_the_formulas(beta, detach, split):
    x, y, x_adv = images()
    method = build(beta=beta, detach=detach, split_norm=split)
    twin = copy.deepcopy(method)
    loss = method(x, y, x_adv)["loss"]
    loss.backward()
    # The authors' order: f(x'), f(x), g(x); f(x) also at beta 0.
    adv = twin.network(x_adv)
    if split == "batch":
        with norm_branch(twin.model, "aux"):
            clean = twin.network(x)
    else:
        clean = twin.network(x)
    teacher = twin.teacher(x)
    expected = formula(adv, clean, teacher, y, beta, teacher.detach() if detach else teacher)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for (name, p), q in zip(method.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, rtol=1e-8, atol=1e-12, msg=name)
    for (name, a), b in zip(method.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_the_pull_reaches_the_teacher_unless_it_is_detached():
    x, y, x_adv = images()
    for detach in (False, True):
        method = build(detach=detach)
        weight = next(method.teacher.parameters())
        losses = method.terms(x, y, x_adv).losses
        (grad,) = torch.autograd.grad(losses["mse"], weight, allow_unused=True)
        assert (grad is None) == detach


def test_without_the_clean_pass_the_gradients_stay_and_the_statistics_are_of_adversarial_images_only():
    x, y, x_adv = images()
    with_pass, without = build(), build(clean_pass=False)
    for method in (with_pass, without):
        method(x, y, x_adv)["loss"].backward()
    for p, q in zip(with_pass.parameters(), without.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    counts = [int(method.model.bn1.num_batches_tracked) for method in (with_pass, without)]
    assert counts == [2, 1]
    mean = without.model.conv1(x_adv).mean((0, 2, 3))
    torch.testing.assert_close(without.model.bn1.running_mean, 0.1 * mean)


def test_with_split_norms_each_branch_sees_its_kind_of_image():
    x, y, x_adv = images()
    method = build(beta=6.0, split_norm="batch")
    method(x, y, x_adv)
    norm = method.model.bn1
    torch.testing.assert_close(norm.running_mean, 0.1 * method.model.conv1(x_adv).mean((0, 2, 3)))
    torch.testing.assert_close(norm.aux_bn[0].running_mean, 0.1 * method.model.conv1(x).mean((0, 2, 3)))
    assert len(list(split_norms(method.model))) > 1 and not list(split_norms(method.teacher))


def test_the_teacher_is_trained_and_saved_but_neither_averaged_nor_exported():
    method = build()
    assert any(key.startswith("teacher.") for key in method.state_dict())
    assert list(method.averaged()) == ["network"]
    assert not any("teacher" in key for key in method.model.state_dict())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"beta": -1.0}, "beta=-1.0 is not at least 0"),
        ({"beta": 6.0, "clean_pass": False}, "needs the clean pass"),
        ({"split_norm": "batch"}, "nothing would train the auxiliary norms"),
        ({"split_norm": "layer", "beta": 1.0}, "split_norm='layer' is not one of"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        build(**settings)


def test_an_attack_that_starts_at_the_image_is_refused():
    with pytest.raises(ValueError, match="LBGAT needs attack.random_start"):
        LBGAT(backbone(), teacher=backbone(1), attack=PGD(random_start=False))
