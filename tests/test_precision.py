"""Half precision by default where the device has it; depthwise convolutions stay out of it on CPUs."""

import copy

import pytest
import timm
import torch

from timm_arat import ARAT, PGD
from timm_arat.engine.config import TrainConfig
from timm_arat.fold import folded
from timm_arat.precision import keep_depthwise_in_float32, resolve_precision

CPU = torch.device("cpu")


def natively(monkeypatch, has_bf16):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)


@pytest.mark.parametrize(
    ("wish", "launcher", "has_bf16", "wanted"),
    [
        ("auto", None, True, "bf16"),
        ("auto", None, False, "no"),
        ("auto", "no", True, "bf16"),
        ("auto", "fp16", True, "fp16"),
        ("no", "bf16", True, "no"),
        ("bf16", "no", False, "bf16"),
    ],
)
def test_a_wish_then_the_launcher_then_the_hardware(monkeypatch, wish, launcher, has_bf16, wanted):
    natively(monkeypatch, has_bf16)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert resolve_precision(wish, CPU) == wanted


def test_a_device_that_is_not_known_to_have_it_stays_in_float32(monkeypatch):
    natively(monkeypatch, True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert resolve_precision("auto", torch.device("mps")) == "no"


def test_the_default_of_a_run_is_auto():
    assert TrainConfig().mixed_precision == "auto"


def test_depthwise_convolutions_compute_in_float32_and_nothing_else_changes():
    torch.manual_seed(0)
    model = timm.create_model("efficientnet_b0", num_classes=10).eval()
    plain = copy.deepcopy(model)
    keep_depthwise_in_float32(model)
    copied = copy.deepcopy(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model.double()(x.double()), plain.double()(x.double()))
    model.float()
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: (m.groups, out.dtype)}))
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    kinds = {(groups > 1, dtype) for groups, dtype in seen.values()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    # A copy computes with its own weights.
    with torch.no_grad():
        next(m for m in copied.modules() if getattr(m, "groups", 1) > 1).weight.zero_()
    assert not torch.allclose(copied(x), model(x))


def test_norms_behind_them_are_folded_as_before():
    torch.manual_seed(0)
    model = timm.create_model("efficientnet_b0", num_classes=10).eval()
    keep_depthwise_in_float32(model)
    calls = []
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            calls.append(module)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), folded(model, x[:1]):
        assert all("forward" in vars(norm) for norm in calls)


@pytest.mark.parametrize("name", ["resnet20_cifar", "efficientnet_b0"])
def test_an_attack_in_bf16_is_as_strong_as_in_float32(name):
    """Cross-entropy that it reaches, in float32, above the clean images'."""
    torch.manual_seed(0)
    method = ARAT(timm.create_model(name, num_classes=10), attack=PGD(steps=5))
    x, y = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))
    for _ in range(3):  # statistics that are not those of the initialisation
        method.train()(x, y)
    net = method.network.eval()
    keep_depthwise_in_float32(net)

    def gain(half):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            x_adv = method.attack(net, x, y)
        with torch.no_grad():
            return float(
                torch.nn.functional.cross_entropy(net(x_adv), y) - torch.nn.functional.cross_entropy(net(x), y)
            )

    single = gain(False)
    assert single > 0 and gain(True) > 0.9 * single
