"""Logits and pooled features in one pass, on every layout that timm has."""

from typing import Any

import pytest
import timm
import torch
from timm.models.resnetv2 import PreActBasic
from torch import Tensor, nn

from timm_arat.taps import paper_layers, tap, tap_dims


def images(n: int = 3, size: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def net(name: str = "resnet20_cifar", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    if name == "resnet20_cifar":
        kwargs = {"layers": (1, 2), "channels": (8, 16), "stem_width": 8, "num_classes": 5, **kwargs}
    model = timm.create_model(name, **kwargs)
    with torch.no_grad():
        for module in model.modules():  # so that a norm is not the identity and bn2 not zero
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return model.eval()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


BACKBONES = {
    "resnet20_cifar": {},
    "wide_resnet34_10_cifar": {"layers": (1, 1, 1), "channels": (8, 16, 32), "num_classes": 5},
    "test_resnet": {},
    "test_efficientnet": {},
    "test_vit": {"img_size": 32},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32, "window_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 5,
        "drop_path_rate": 0.0,
    },
    "test_convnext": {},
    "test_mambaout": {},
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("train", [False, True])
def test_the_last_stage_needs_no_hook_and_changes_no_logit(name: str, train: bool) -> None:
    model, x = net(name, **BACKBONES[name]), images()
    model.train(train)
    logits, features = tap(model, x)
    assert list(features) == ["last"] and hooks(model) == 0
    assert features["last"].shape == (3, model.feature_info[-1]["num_chs"])
    assert tap_dims(model) == {"last": features["last"].shape[1]}
    torch.testing.assert_close(logits, model(x))
    map_ = model.forward_intermediates(x, indices=1, intermediates_only=True)[0]
    torch.testing.assert_close(features["last"], map_.flatten(2).mean(2))


# A layer, and how to average what it gives.
NAMED = [
    ("resnet20_cifar", "layer2", (2, 3)),
    ("resnet20_cifar", "layer2.1.act1", (2, 3)),
    ("test_vit", "blocks.1", (1,)),
    ("swin_tiny_patch4_window7_224", "layers.1@nhwc", (1, 2)),
    ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.norm1@nhwc", (1, 2)),
    ("test_convnext", "stages.3", (2, 3)),
]


@pytest.mark.parametrize(("name", "layer", "space"), NAMED)
def test_a_named_layer_is_its_averaged_output(name: str, layer: str, space: tuple[int, ...]) -> None:
    model, x = net(name, **BACKBONES[name]), images()
    seen = []
    handle = model.get_submodule(layer.split("@")[0]).register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    wanted = model(x)
    handle.remove()
    logits, features = tap(model, x, [layer])
    assert torch.equal(logits, wanted) and hooks(model) == 0
    torch.testing.assert_close(features[layer], seen[0].mean(space))
    assert tap_dims(model, [layer]) == {layer: features[layer].shape[1]}


def test_features_keep_the_order_that_was_asked_for() -> None:
    model = net()
    layers = ["layer2.1", "layer1", "layer2.0.bn1@relu"]
    assert list(tap(model, images(), layers)[1]) == layers == list(tap_dims(model, layers))


def test_outputs_that_are_overwritten_in_place_are_read_before() -> None:
    """In timm's ResNet the activation, an in-place ReLU, overwrites what bn1 gave, the residual sum what bn2 gave."""
    model, x = net("resnet18", num_classes=5), images()
    # Everything by hand, layer4 block by block, without in-place operations.
    before = {}
    stem = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    z = model.layer3(model.layer2(model.layer1(stem)))
    for i, block in enumerate(model.layer4):
        a1 = block.bn1(block.conv1(z)).clone()
        before[f"layer4.{i}.bn1"] = a1
        a2 = block.bn2(block.conv2(a1.relu())).clone()
        before[f"layer4.{i}.bn2"] = a2
        z = (a2 + (z if block.downsample is None else block.downsample(z))).relu()
    plain = tap(model, x, list(before))[1]
    rectified = tap(model, x, [f"{layer}@relu" for layer in before])[1]
    assert (before["layer4.0.bn1"] < 0).any()
    for layer, value in before.items():
        torch.testing.assert_close(plain[layer], value.mean((2, 3)))
        torch.testing.assert_close(rectified[f"{layer}@relu"], value.relu().mean((2, 3)))


def test_features_and_logits_share_one_graph() -> None:
    model, x = net(), images().requires_grad_()
    logits, features = tap(model, x, ["layer1", "layer2.1.bn2@relu"])
    for value in (logits, *features.values()):
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
        assert gradient.abs().sum() > 0
    parameters = [p for name, p in model.named_parameters() if not name.startswith(("layer2", "fc"))]
    gradients = torch.autograd.grad(features["layer1"].sum(), parameters)
    assert all(g.isfinite().all() for g in gradients) and any(g.abs().sum() > 0 for g in gradients)


def test_a_batch_of_two_is_not_a_pair() -> None:
    model, x = net(), images(2)
    logits, features = tap(model, x, ["layer2"])
    alone = tap(model, x[1:], ["layer2"])
    assert logits.shape == (2, 5) and features["layer2"].shape == (2, 16)
    torch.testing.assert_close(features["layer2"][1:], alone[1]["layer2"])


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (["layer2.0.bn"], r"no layer 'layer2\.0\.bn' in ResNetCifar; did you mean .*'layer2\.0\.bn1'"),
        (["layer1", "zzz"], r"no layer 'zzz' in ResNetCifar; choose from act1, bn1, conv1"),
        ([""], r"no layer '' in ResNetCifar"),
        (["layer1@relo"], r"'layer1@relo': @relo is not known, only @nhwc and @relu are"),
        (["layer1", "fc"], r"layer 'fc' gives \(3, 5\), not one NCHW, NHWC or NLC feature map"),
    ],
)
def test_a_wrong_layer_is_named_and_leaves_no_hook(layers: list[str], text: str) -> None:
    model = net()
    with pytest.raises(ValueError, match=text):
        tap(model, images(), layers)
    assert hooks(model) == 0
    tap(model, images())


def test_an_error_inside_the_model_leaves_no_hook() -> None:
    model = net()
    with pytest.raises(RuntimeError):
        tap(model, images(channels=4), ["layer1", "layer2"])
    assert hooks(model) == 0


def test_a_layer_that_is_never_called_is_an_error() -> None:
    model = net()
    model.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="layers spare were not called"):
        tap(model, images(), ["spare"])
    assert hooks(model) == 0


def test_a_layer_that_gives_a_tuple_is_an_error() -> None:
    model = net()
    model.layer1.register_forward_hook(lambda m, a, out: (out, out))
    model.layer1.register_forward_hook(lambda m, a, out: out)
    model.layer2.register_forward_pre_hook(lambda m, a: a[0])
    with pytest.raises(ValueError, match="layer 'layer1' gives tuple"):
        tap(model, images(), ["layer1"])


@pytest.mark.parametrize("layers", [(), ("layer1.0", "layer2.1"), ("layer2.0.bn1@relu", "layer2.1.bn2@relu")])
def test_gradient_checkpointing_gives_the_same_gradients(layers: tuple[str, ...]) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = net().train()
        model.set_grad_checkpointing(checkpointing)
        logits, features = tap(model, images(), layers)
        (logits.square().sum() + sum(f.square().sum() for f in features.values())).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_a_reentrant_checkpoint_around_a_layer_is_refused_and_not_silently_without_gradient() -> None:
    model = net().train()
    model.set_grad_checkpointing()
    before = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(True)
    try:
        with pytest.raises(ValueError, match="inside a reentrant gradient checkpoint"):
            tap(model, images().requires_grad_(), ["layer2.1.act1"])
    finally:
        timm.layers.set_reentrant_ckpt(before)
    assert hooks(model) == 0


def test_tap_dims_moves_nothing() -> None:
    model = net().train()
    model.layer2.eval()
    modes = [m.training for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    tap_dims(model, ["layer1", "layer2"])
    assert [m.training for m in model.modules()] == modes and hooks(model) == 0
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_tap_dims_of_a_model_with_another_number_of_channels() -> None:
    assert tap_dims(net(in_chans=1), ["layer1", "layer2"], in_chans=1) == {"layer1": 8, "layer2": 16}
    assert tap_dims(net("test_vit", img_size=32), ["blocks.0"]) == {"blocks.0": 64}


def paper(*blocks: int) -> tuple[str, ...]:
    return tuple(f"layer4.{i}.{norm}@relu" for i in blocks for norm in ("bn1", "bn2"))


@pytest.mark.parametrize("name", ["resnet18", "resnet18_cifar"])
def test_paper_layers_of_a_resnet18(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert paper_layers(model) == paper(0, 1)


def test_paper_layers_of_a_resnet20() -> None:
    model = net()
    layers = paper_layers(model)
    assert layers == tuple(f"layer2.{i}.{norm}@relu" for i in (0, 1) for norm in ("bn1", "bn2"))
    assert set(tap_dims(model, layers).values()) == {16}


def test_paper_layers_of_a_wide_resnet34_10() -> None:
    """Official code: relu1 and relu2 of the last stage's five blocks, and the ReLU before the pool; method.md 3.3."""
    with torch.device("meta"):
        model = timm.create_model("wide_resnet34_10_cifar")
    layers = paper_layers(model)
    assert layers == (*(f"stages.2.blocks.{i}.norm{n}" for i in range(5) for n in (1, 2)), "norm")
    assert list(tap_dims(model, layers).values()) == [320, *[640] * 10]


def test_the_last_paper_layer_of_a_wide_resnet_is_what_its_classifier_reads() -> None:
    model, x = net("wide_resnet34_10_cifar", **BACKBONES["wide_resnet34_10_cifar"]), images()
    assert all(isinstance(block, PreActBasic) for block in model.stages[-1].blocks)
    layers = paper_layers(model)
    logits, features = tap(model, x, layers)
    torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(features[layers[-1]], model.forward_head(model.forward_features(x), pre_logits=True))
    assert all((feature >= 0).all() for feature in features.values()), "rectified"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_paper_layers_of_another_family_are_refused(name: str) -> None:
    model = timm.create_model("resnet26" if name == "test_resnet" else name)
    with pytest.raises(ValueError, match=f"no layers for {type(model).__name__}.*leave them out for the last stage"):
        paper_layers(model)
