"""DAJAT's loss and gradients against the formula, and which view sees which norms."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_arat import DAJAT, PGD, TRADES
from timm_arat.methods.dajat import autoaugment
from timm_arat.norm import is_split, norm_branch

ATTACK = PGD(eps=0.1, steps=2)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar", num_classes=5, layers=(1, 1), channels=(4, 8), zero_init_last=False)


def build(attack: PGD = ATTACK, **settings) -> DAJAT:
    return DAJAT(backbone(), attack=attack, **settings).double().train()


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.rand(n, 3, 16, 16, dtype=torch.float64), torch.arange(n) % 5


def formula(clean: list[Tensor], adv: list[Tensor], y: Tensor, beta: float, weight_js: float) -> Tensor:
    """Image by image and class by class; NxK each."""
    total, count = torch.zeros((), dtype=torch.float64), len(clean)
    for i, label in enumerate(y):
        p = [view[i].softmax(0) for view in clean]
        q = [view[i].softmax(0) for view in adv]
        mixture = sum(p) / count
        for v in range(count):
            divergence = sum(p[v][k] * (p[v][k] / q[v][k]).log() for k in range(5))
            js = sum(p[v][k] * (p[v][k] / mixture[k]).log() for k in range(5))
            total = total + (-p[v][label].log() + beta * divergence + weight_js * js) / count
    return total / len(y)


@pytest.mark.parametrize("views", [0, 1, 2])
@pytest.mark.parametrize("split", ["batch", "none"])
def test_loss_gradients_and_statistics_are_the_formulas(views, split):
    x, y = batch()
    method = build(views=views, split_norm=split, beta=11.0, weight_js=2.0)
    assert is_split(method.model) == (split == "batch" and views > 0)
    twin = copy.deepcopy(method)
    x, x_adv = method.perturb(x, y)
    loss = method(x, y, x_adv)["loss"]
    loss.backward()
    clean, adv = [], []
    for number in range(views + 1):
        of = slice(number * len(y), (number + 1) * len(y))
        if is_split(twin.model) and number:
            with norm_branch(twin.model, "aux"):
                pair = twin.network(x[of]), twin.network(x_adv[of])
        else:
            pair = twin.network(x[of]), twin.network(x_adv[of])
        clean.append(pair[0])
        adv.append(pair[1])
    expected = formula(clean, adv, y, 11.0, 2.0)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for (name, p), q in zip(method.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-12, msg=name)
    for (name, a), b in zip(method.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_one_view_is_trades_with_other_constants():
    """ACAT: the same images, loss and gradients."""
    x, y = batch()
    acat, trades = build(views=0, beta=4.0), TRADES(backbone(), attack=ATTACK, beta=4.0).double().train()
    losses = []
    for method in (acat, trades):
        torch.manual_seed(3)
        losses.append(method(x, y)["loss"])
        losses[-1].backward()
    assert losses[0] == losses[1]
    for p, q in zip(acat.parameters(), trades.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_each_view_is_attacked_within_its_own_ball_on_its_own_branch():
    x, y = batch()
    method = build()
    for module in method.model.modules():
        if hasattr(module, "aux_bn"):
            nn.init.normal_(module.aux_bn[0].weight)
    attack = PGD(eps=0.05, steps=1)
    torch.manual_seed(4)
    views, x_adv = method.perturb(x, y, attack=attack)
    assert torch.equal(views[:6], x) and not torch.equal(views[6:12], x) and not torch.equal(views[6:12], views[12:])
    assert (x_adv - views).abs().amax((1, 2, 3)) == pytest.approx(torch.full((18,), 0.05, dtype=torch.float64))
    # By hand, from the same draws: both views are made before the first attack.
    torch.manual_seed(4)
    made = [x, autoaugment(x, "cifar10"), autoaugment(x, "cifar10")]
    assert torch.equal(torch.cat(made), views)
    twin = copy.deepcopy(method).eval()
    for number, view in enumerate(made):
        with norm_branch(twin.model, "aux" if number else "main"):
            clean = twin.network(view).softmax(1).detach()
            start = (view + torch.empty_like(view).uniform_(-0.05, 0.05)).clamp(0, 1)
            leaf = start.clone().requires_grad_()
            (grad,) = torch.autograd.grad((clean * (clean / twin.network(leaf).softmax(1)).log()).sum(), leaf)
        expected = (start + 0.05 * grad.sign()).clamp(view - 0.05, view + 0.05).clamp(0, 1)
        torch.testing.assert_close(x_adv[6 * number : 6 * number + 6], expected)


def test_a_view_is_autoaugments_of_each_image_by_itself_and_repeats_with_the_generator():
    x = batch(40)[0].float()
    before = x.clone()
    torch.manual_seed(5)
    first, second = autoaugment(x, "cifar10"), autoaugment(x, "cifar10")
    torch.manual_seed(5)
    again = autoaugment(x, "cifar10")
    assert torch.equal(x, before) and torch.equal(first, again) and not torch.equal(first, second)
    assert first.shape == x.shape and first.dtype == x.dtype and 0 <= first.min() <= first.max() <= 1
    torch.testing.assert_close(first * 255, (first * 255).round(), atol=1e-4, rtol=0)
    same = x[:1].repeat(40, 1, 1, 1)
    assert len(torch.unique(autoaugment(same, "cifar10"), dim=0)) > 10, "the draws are of each image"


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_and_channels_last_images_are_augmented_as_well(channels):
    x = torch.rand(30, channels, 8, 8).contiguous(memory_format=torch.channels_last)
    found = autoaugment(x, "cifar10")
    assert found.shape == x.shape and found.is_contiguous(memory_format=torch.channels_last)


def test_a_linear_ramp_of_eps_over_the_run_is_a_warm_up_of_one_epoch_fewer():
    attack = PGD(eps=8 / 255, steps=2, step_size=8 / 255, warmup_epochs=7)
    ramp = [attack.at_epoch(epoch) for epoch in range(8)]
    assert [each.eps for each in ramp] == pytest.approx([8 / 255 * e / 8 for e in range(1, 9)])
    assert [each.step_size for each in ramp] == pytest.approx([8 / 255 * e / 8 for e in range(1, 9)])


def test_a_start_is_of_the_images_alone():
    x, y = batch()
    with pytest.raises(ValueError, match="DAJAT attacks 3 views, and a start is of one"):
        build().perturb(x, y, x)
    build(views=0).perturb(x, y, x)


def test_images_that_are_not_the_views_of_the_labels_are_refused():
    x, y = batch()
    with pytest.raises(ValueError, match="DAJAT wants 3 views of the 6 images"):
        build()(x, y, x)


@pytest.mark.parametrize("wrong", [{"views": -1}, {"beta": -1.0}, {"weight_js": -1.0}, {"policy": "cifar"}], ids=str)
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(**wrong)
