"""Splits of one half of a BatchNorm: affine parameters apart and statistics shared, or the reverse."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import timm_arat
from timm_arat import ARAT, PGD
from timm_arat.hub._curves import split_model
from timm_arat.norm import convert_split_norm, load_split_state_dict, merge_split_norm, norm_branch

SHARED = {"affine": {"weight", "bias"}, "statistics": {"running_mean", "running_var", "num_batches_tracked"}}


@pytest.fixture
def x():
    return torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def network(kind=nn.BatchNorm2d):
    torch.manual_seed(1)
    norm = kind(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    norm(torch.randn(16, 3, 4, 4))  # statistics that are not 0 and 1
    return nn.Sequential(norm)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize("share", SHARED)
def test_both_branches_begin_as_the_plain_norm_and_hold_only_what_is_apart(share, kind, x):
    plain, net = network(kind).eval(), convert_split_norm(network(kind).eval(), share=share)
    own = {key.removeprefix("0.aux_bn.0.") for key in net.state_dict() if "aux_bn" in key}
    assert own == {*SHARED["affine"], *SHARED["statistics"]} - SHARED[share]
    for branch in ("main", "aux"):
        with norm_branch(net, branch):
            assert torch.equal(net(x), plain(x))
    with norm_branch(net, "both"):
        torch.testing.assert_close(net(x), plain(x), rtol=1e-5, atol=1e-6)
    again = convert_split_norm(network(kind).eval(), share=share)
    load_split_state_dict(again, net.state_dict(), swap=False)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


def test_shared_statistics_are_of_both_halves_together(x):
    plain, net = network(), convert_split_norm(network(), share="statistics")
    bn = net[0]
    with torch.no_grad():
        bn.aux_bn[0].weight.mul_(2)
    with norm_branch(net, "both"):
        y_main, y_aux = net(x).chunk(2)
    wanted = plain(x)
    torch.testing.assert_close(y_main, wanted[:4])
    shift = plain[0].bias.view(1, -1, 1, 1)
    torch.testing.assert_close(y_aux, 2 * (wanted[4:] - shift) + shift)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(bn, name), getattr(plain[0], name))


def test_shared_affine_parameters_get_both_gradients_and_the_halves_are_normalised_apart(x):
    one, other, net = network(), network(), convert_split_norm(network(), share="affine")
    with norm_branch(net, "both"):
        y = net(x)
    wanted = torch.cat([one(x[:4]), other(x[4:])])
    torch.testing.assert_close(y, wanted)
    y.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(net[0].weight.grad, one[0].weight.grad + other[0].weight.grad)
    torch.testing.assert_close(net[0].running_mean, one[0].running_mean)
    torch.testing.assert_close(net[0].aux_bn[0].running_mean, other[0].running_mean)


@pytest.mark.parametrize("share", SHARED)
@pytest.mark.parametrize("branch", ["main", "aux"])
def test_merging_gives_the_branch_as_a_plain_norm(share, branch, x):
    net = convert_split_norm(network(), share=share)
    with norm_branch(net, "both"), torch.no_grad():
        net(x)  # the branches are not alike any more
        for name in ("weight", "bias"):
            if getattr(net[0].aux_bn[0], name) is not None:
                getattr(net[0].aux_bn[0], name).add_(0.5)
    net.eval()
    with norm_branch(net, branch):
        wanted = net(x)
    merged = merge_split_norm(copy.deepcopy(net), branch=branch)
    assert type(merged[0]) is nn.BatchNorm2d and not hasattr(merged[0], "share")
    torch.testing.assert_close(merged(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (nn.Sequential(nn.LayerNorm(4)), {"norms": "all"}, "0 is a LayerNorm, and only branches of a plain BatchNorm"),
        (nn.Sequential(nn.SyncBatchNorm(4)), {}, "0 is a SyncBatchNorm.*sync_norm off"),
    ],
)
def test_norms_without_two_halves_are_refused_before_anything_is_changed(model, settings, words):
    with pytest.raises(ValueError, match=words):
        convert_split_norm(model, share="affine", **settings)
    assert not hasattr(model[0], "aux_bn")
    with pytest.raises(ValueError, match="share='weights' is not None, 'affine' or 'statistics'"):
        convert_split_norm(network(), share="weights")


@pytest.mark.parametrize("share", SHARED)
def test_an_export_has_the_whole_auxiliary_branch(share, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=5, layers=(1, 1), channels=(4, 8)).train()
    convert_split_norm(model, share=share)
    with norm_branch(model, "both"), torch.no_grad():
        for module in model.modules():
            if getattr(module, "weight", None) is not None and module.weight.ndim == 1:
                module.weight.uniform_(0.5, 2)
        model(torch.rand(8, 3, 8, 8))
    timm_arat.export(model, tmp_path, model_args={"layers": (1, 1), "channels": (4, 8)})
    again = split_model(tmp_path).eval()
    x = torch.rand(2, 3, 8, 8)
    model.eval()
    for branch in ("main", "aux"):
        with norm_branch(model, branch), norm_branch(again, branch):
            assert torch.equal(model(x), again(x))


@pytest.mark.parametrize(("which", "like"), [("affine", "none"), ("statistics", "batch")])
def test_arats_first_step_is_that_of_the_whole_split_or_of_none(which, like):
    """Affine parameters begin equal, so apart or not they give the same; the statistics decide."""
    found = {}
    for split_norm in (which, like):
        torch.manual_seed(0)
        shape = {"layers": (1, 1), "channels": (8, 12), "stem_width": 8, "zero_init_last": False}
        model = timm.create_model("resnet20_cifar", num_classes=5, **shape)
        method = ARAT(model, attack=PGD(eps=0.1, steps=2), split_norm=split_norm, weight=3.0).train()
        torch.manual_seed(1)
        x, y = torch.rand(6, 3, 8, 8), torch.randint(5, (6,))
        out = method(x, y)
        out["loss"].backward()
        net = method.network.model
        found[split_norm] = (out["loss"], net.conv1.weight.grad, net.bn1.running_mean)
        aux = net.bn1.aux_bn[0] if split_norm != "none" else None
        if which == "affine" == split_norm:
            assert aux.weight.grad.abs().sum() > 0 and aux.running_mean is None
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", SHARED)
def test_an_attack_by_the_batch_s_statistics_moves_none(share):
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=10, layers=(1, 1), channels=(8, 8), stem_width=8)
    method = ARAT(model, attack=PGD(eps=0.1, steps=2, norm_mode="batch"), split_norm=share)
    method.train()
    before = copy.deepcopy(dict(method.named_buffers()))
    method.perturb(torch.rand(8, 3, 8, 8), torch.randint(10, (8,)))
    assert all(torch.equal(value, before[name]) for name, value in method.named_buffers())
