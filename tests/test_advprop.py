"""AdvProp: which branch sees, attacks and serves which images."""

import copy

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_arat import PGD, AdvProp, merge_split_norm
from timm_arat.norm import norm_branch

ATTACK = PGD(eps=0.1, steps=2)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar", num_classes=5, layers=(1, 1), channels=(4, 8), zero_init_last=False)


def build(**settings) -> AdvProp:
    return AdvProp(backbone(), attack=ATTACK, **settings).double().train()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.rand(6, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])


def test_loss_gradients_and_statistics_are_those_of_two_networks_with_shared_weights():
    x, y = batch()
    method = build()
    twin = copy.deepcopy(method)
    x, x_adv = method.perturb(x, y)
    loss = method(x, y, x_adv)["loss"]
    loss.backward()
    p = twin.network(x).softmax(1)
    with norm_branch(twin.model, "aux"):
        q = twin.network(x_adv).softmax(1)
    expected = -sum(p[i, label].log() + q[i, label].log() for i, label in enumerate(y)) / (2 * len(y))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for (name, a), b in zip(method.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12, msg=name)
    for (name, a), b in zip(method.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_label_smoothing_is_in_both_terms():
    x, y = batch()
    method, smooth = build(), build(label_smoothing=0.5)
    plain, smoothed = (each.terms(x, y, x.flip(0)).losses for each in (method, smooth))
    logits = build().network(x)
    torch.testing.assert_close(smoothed["ce_clean"], F.cross_entropy(logits, y, label_smoothing=0.5))
    assert smoothed["ce_adv"] != plain["ce_adv"]


def test_the_attack_climbs_the_auxiliary_branch():
    x, y = batch()
    method = build()
    for norm in method.model.modules():
        if hasattr(norm, "aux_bn"):
            torch.nn.init.normal_(norm.aux_bn[0].weight)
    torch.manual_seed(7)
    found = method.perturb(x, y)[1]
    twin = copy.deepcopy(method)
    torch.manual_seed(7)
    by_main = ATTACK(twin.network, x, y)
    torch.manual_seed(7)
    with norm_branch(twin.model, "aux"):
        by_aux = ATTACK(twin.network, x, y)
    assert torch.equal(found, by_aux) and not torch.equal(found, by_main)


def test_the_exported_branch_is_the_one_that_clean_images_train():
    x, y = batch()
    method = build()
    method(x, y)["loss"].backward()
    clean = method.eval().clean_logits(x)
    assert torch.equal(merge_split_norm(copy.deepcopy(method.model)).eval()(x), clean)
    torch.testing.assert_close(method.model.bn1.running_mean, 0.1 * method.model.conv1(x).mean((0, 2, 3)))
