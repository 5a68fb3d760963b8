"""The CIFAR family is a timm family: every entry point of timm's models works on it."""

import copy
import io
import pickle
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import Tensor, nn

from timm_arat.models import ResNetCifar

FAMILY = {"resnet20_cifar": 272_474, "resnet18_cifar": 11_173_962}
TINY: dict[str, Any] = {"layers": (1, 2), "channels": (8, 16), "stem_width": 8, "num_classes": 5}


def tiny(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar", **{**TINY, **kwargs}).eval()


def images(n: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "parameters"), FAMILY.items())
def test_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert type(model) is ResNetCifar and model.num_classes == 10


@pytest.mark.parametrize("name", FAMILY)
def test_is_listed_with_its_configuration(name: str) -> None:
    assert name in timm.list_models("*_cifar") and timm.is_model(name)
    cfg = timm.create_model(name).pretrained_cfg
    assert cfg["mean"] == (0, 0, 0) and cfg["std"] == (1, 1, 1)
    assert cfg["input_size"] == (3, 32, 32) and cfg["num_classes"] == 10
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    assert config["input_size"] == (3, 32, 32) and config["crop_pct"] == 1.0
    assert name not in timm.list_models(pretrained=True), "no weights are published yet"


@pytest.mark.parametrize(("name", "stages"), [("resnet20_cifar", 3), ("resnet18_cifar", 4)])
def test_the_stem_keeps_the_image_and_each_later_stage_halves_it(name: str, stages: int) -> None:
    model = timm.create_model(name).eval()
    features = model.forward_intermediates(images(1, size=32), intermediates_only=True)
    assert [f.shape[-1] for f in features] == [32, *[32 >> i for i in range(stages)]]
    assert [f.shape[1] for f in features] == [info["num_chs"] for info in model.feature_info]
    assert [32 // f.shape[-1] for f in features] == [info["reduction"] for info in model.feature_info]
    assert tuple(model.pretrained_cfg["pool_size"]) == features[-1].shape[-2:]


def test_it_is_the_resnet_of_the_paper() -> None:
    """He et al., Sec. 4.2: stem, 3 x n blocks of two convolutions, linear; the forward pass written out."""
    model, x = tiny(), images()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.running_mean.normal_()  # type: ignore[union-attr]
        z = model.bn1(model.conv1(x)).relu()
        for block in (*model.layer1, *model.layer2):
            shortcut = z if block.downsample is None else block.downsample(z)
            z = (block.bn2(block.conv2(block.bn1(block.conv1(z)).relu())) + shortcut).relu()
        torch.testing.assert_close(model(x), model.fc(z.mean((2, 3))))


def test_every_way_through_gives_the_same_logits() -> None:
    model, x = tiny(), images()
    logits = model(x)
    final, features = model.forward_intermediates(x)
    torch.testing.assert_close(model.forward_head(final), logits)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), logits)
    assert torch.equal(features[-1], final) and len(features) == 3
    pre = model.forward_head(final, pre_logits=True)
    assert pre.shape == (2, model.num_features)
    torch.testing.assert_close(model.get_classifier()(pre), logits)


@pytest.mark.parametrize(("indices", "kept"), [(1, [2]), (2, [1, 2]), ([0], [0]), ([0, -1], [0, 2]), (None, [0, 1, 2])])
def test_intermediates_are_the_ones_asked_for(indices: Any, kept: list[int]) -> None:
    model, x = tiny(), images()
    everything = model.forward_intermediates(x, intermediates_only=True)
    some = model.forward_intermediates(x, indices=indices, intermediates_only=True)
    assert len(some) == len(kept)
    for feature, index in zip(some, kept, strict=True):
        assert torch.equal(feature, everything[index])


def test_stop_early_runs_no_later_stage() -> None:
    model, x = tiny(), images()
    model.layer2.register_forward_hook(lambda *_: pytest.fail("layer2 was run"))
    final, _ = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert final.shape[1] == 8


@pytest.mark.parametrize("indices", [None, (0, 2), (1,)])
def test_features_only(indices: Any) -> None:
    kwargs = {} if indices is None else {"out_indices": indices}
    model, whole, x = tiny(features_only=True, **kwargs), tiny(), images()
    model.load_state_dict(whole.state_dict(), strict=False)
    wanted = whole.forward_intermediates(x, indices=indices, intermediates_only=True)
    got = model(x)
    assert [f.shape for f in got] == [f.shape for f in wanted]
    assert model.feature_info.channels() == [f.shape[1] for f in got]
    assert model.feature_info.reduction() == [16 // f.shape[-1] for f in got]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", FAMILY)
def test_features_only_by_name(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
        features = model(torch.rand(1, 3, 32, 32))
    assert len(features) == len(model.feature_info.channels()) == {"resnet20_cifar": 4, "resnet18_cifar": 5}[name]


def test_number_of_classes_and_the_classifier() -> None:
    model, x = tiny(num_classes=7), images()
    assert model(x).shape == (2, 7) and model.get_classifier() is model.fc
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 16, 8, 8)
    assert tiny(num_classes=0)(x).shape == (2, 16)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_global_pool(pool: str) -> None:
    assert tiny(global_pool=pool)(images()).shape == (2, 5)


def test_input_channels() -> None:
    assert tiny(in_chans=1)(images(channels=1)).shape == (2, 5)
    assert tiny(in_chans=6).conv1.in_channels == 6


@pytest.mark.parametrize("size", [8, 15, 40])
def test_any_image_size(size: int) -> None:
    assert tiny()(images(size=size)).shape == (2, 5)


def test_bottleneck_blocks_work_too() -> None:
    from timm.models.resnet import Bottleneck

    model = tiny(block=Bottleneck)
    assert model.num_features == 64 and model(images()).shape == (2, 5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        model.set_grad_checkpointing(checkpointing)
        model(images(4)).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_prune_intermediate_layers() -> None:
    model, x = tiny(), images()
    wanted = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1]
    assert not hasattr(model, "layer2") and model.num_features == 8 and model.num_classes == 0
    torch.testing.assert_close(model.forward_features(x), wanted)
    assert model.forward_head(model.forward_features(x)).shape[:2] == (2, 8)
    assert "layer2" not in str(list(model.state_dict()))


def test_prune_keeps_the_head_where_nothing_is_pruned() -> None:
    model, x = tiny(), images()
    logits = model(x)
    model.prune_intermediate_layers([2], prune_head=False)
    assert torch.equal(model(x), logits)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state dict"])
def test_survives_being_copied(how: str) -> None:
    model, x = tiny(), images()
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        torch.manual_seed(1)
        other = timm.create_model("resnet20_cifar", **TINY).eval()
        other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_initialisation_is_timm_s() -> None:
    """Kaiming-normal convolutions (fan out), and a last norm of zero, so that every block begins as its shortcut."""
    model = timm.create_model("resnet20_cifar")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15), name
        if name.endswith("bn2"):
            assert torch.equal(module.weight, torch.zeros_like(module.weight))
    assert (tiny(zero_init_last=False).layer1[0].bn2.weight == 1).all()


def test_layer_decay_groups_cover_every_parameter_once() -> None:
    model = tiny()
    groups = timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert model.conv1.weight is next(p for p in model.parameters()), "the stem is first"


def test_dtype_and_device_reach_every_parameter() -> None:
    model = timm.create_model("resnet20_cifar", **TINY, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


def test_layers_and_channels_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers=\(1, 2\) and channels=\(8, 16, 32\) need one number a stage each"):
        tiny(channels=(8, 16, 32))


@pytest.mark.parametrize("name", FAMILY)
def test_pretrained_weights_that_do_not_exist_are_an_error(name: str) -> None:
    with pytest.raises(RuntimeError, match="[Nn]o pretrained weights"):
        timm.create_model(name, pretrained=True)
