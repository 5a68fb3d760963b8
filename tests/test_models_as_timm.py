"""The models of timm_arat are timm models: what timm's own tests ask of every architecture, and its other entry points.

To put a new model under these tests, add its name to NAMES and, if it is large, its narrow version to SMALL.
"""

import copy
import io
import math
import pickle
from typing import Any

import pytest
import timm
import timm.optim
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save_file
from timm.models import FeatureInfo, group_parameters
from torch import Tensor, nn

import timm_arat.models  # noqa: F401  # registers

BACKBONES = ("resnet20_cifar", "resnet18_cifar", "resnet50_cifar", "wide_resnet34_10_cifar")
IMAGENET = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
NAMES = [*BACKBONES, *(f"{name}_arat" for name in (*BACKBONES, *IMAGENET))]
SMALL: dict[str, dict[str, Any]] = {
    "resnet20_cifar": {"layers": (1, 2), "channels": (8, 16), "stem_width": 8},
    "resnet18_cifar": {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 20), "stem_width": 8},
    "resnet50_cifar": {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8), "stem_width": 8},
    "wide_resnet34_10_cifar": {"layers": (1, 1, 1), "channels": (16, 24, 32)},
    **dict.fromkeys(("resnet18", "resnet34"), {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 20)}),
    **dict.fromkeys(("resnet50", "wide_resnet50_2"), {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8)}),
}
SIDE = 32
every_model = pytest.mark.parametrize("name", NAMES)


def small(name: str, **kwargs: Any) -> Any:
    """The architecture, narrow, with 5 classes; blocks that begin as their shortcut would hide mistakes in them."""
    torch.manual_seed(0)
    settings = {"num_classes": 5, "zero_init_last": False, **SMALL.get(name.removesuffix("_arat"), {}), **kwargs}
    return timm.create_model(name, **settings).eval()


def full(name: str, **kwargs: Any) -> Any:
    """As users get it, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


def images(n: int = 2, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    logits.square().sum().backward()
    found = {}
    for name, p in model.named_parameters():
        assert p.grad is not None, f"no gradient for {name}"
        found[name] = p.grad.clone()
    return found


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


# The registry and the configuration.


@every_model
def test_is_registered(name: str) -> None:
    assert name in timm.list_models() and timm.is_model(name)
    model = timm.models.model_entrypoint(name)(num_classes=3, **SMALL.get(name.removesuffix("_arat"), {}))
    assert isinstance(model, nn.Module) and model.num_classes == 3


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_alone_has_no_weights(name: str) -> None:
    assert not timm.list_models(f"{name}.*", pretrained=True)
    with pytest.raises(RuntimeError, match="[Nn]o pretrained weights"):
        timm.create_model(name, pretrained=True)


@every_model
def test_configuration_names_the_model_s_own_layers_and_sizes(name: str) -> None:
    model = full(name)
    cfg, weights = model.pretrained_cfg, model.state_dict()
    assert cfg is model.default_cfg and cfg["architecture"] == name.removesuffix("_arat")
    assert weights[f"{cfg['first_conv']}.weight"].shape[1] == 3
    assert weights[f"{cfg['classifier']}.weight"].shape[0] == cfg["num_classes"] == model.num_classes
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    data = timm.data.resolve_model_data_config(model)
    if "cifar" in name:
        assert (cfg["mean"], cfg["std"]) == ((0, 0, 0), (1, 1, 1)), "pixels in [0, 1] as they are"
        assert cfg["input_size"] == (3, 32, 32) and cfg["num_classes"] == 10
        assert data["input_size"] == (3, 32, 32) and data["crop_pct"] == 1.0 and data["interpolation"] == "bicubic"
    elif not cfg.get("file"):  # without weights yet
        assert cfg["num_classes"] == 1000 and data["input_size"] == (3, 224, 224) and data["crop_pct"] == 0.875


@every_model
def test_full_size(name: str) -> None:
    model = full(name)
    side = model.pretrained_cfg["input_size"][-1]
    x = torch.rand(1, 3, side, side, device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *model.pretrained_cfg["pool_size"])
    assert model(x).shape == (1, model.num_classes)
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    final, intermediates = model.forward_intermediates(x)
    assert final.shape == features.shape and len(intermediates) >= 4
    assert [f.shape[1] for f in intermediates] == info.channels()
    reductions = [1, 1, 2, 4, 8][: len(intermediates)] if "cifar" in name else [2, 4, 8, 16, 32]
    assert [side // f.shape[-1] for f in intermediates] == info.reduction() == reductions
    wrapped = full(name, features_only=True)
    assert [f.shape for f in wrapped(x)] == [f.shape for f in intermediates]
    assert wrapped.feature_info.channels() == info.channels()
    assert wrapped.feature_info.reduction() == info.reduction()


@every_model
def test_dtype_and_device_reach_every_parameter(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    model.reset_classifier(3)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("channels", [1, 6])
@every_model
def test_pretrained_weights_adapt_to_the_input_and_the_classes(name: str, channels: int, tmp_path: Any) -> None:
    source, file = small(name, num_classes=10), str(tmp_path / "model.safetensors")
    save_file(source.state_dict(), file)
    overlay = {"file": file}
    same = small(name, num_classes=10, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(same(images()), source(images()))
    other = small(name, num_classes=4, in_chans=channels, pretrained=True, pretrained_cfg_overlay=overlay)
    assert other(images(channels=channels)).shape == (2, 4)
    conv = f"{source.pretrained_cfg['first_conv']}.weight"
    total = 3 if channels == 1 else 1  # timm sums for grey images and rescales for more channels
    got, wanted = other.state_dict()[conv].sum(1), source.state_dict()[conv].sum(1)
    torch.testing.assert_close(got, wanted, msg=lambda text: f"{total}: {text}")


# Forward and backward.


@every_model
def test_every_way_through_gives_the_same_logits(name: str) -> None:
    model, x = small(name), images()
    logits = model(x)
    assert logits.shape == (2, 5) and logits.isfinite().all()
    final, _ = model.forward_intermediates(x)
    torch.testing.assert_close(model.forward_head(final), logits)
    torch.testing.assert_close(model.forward_features(x), final)
    pre = model.forward_head(final, pre_logits=True)
    assert pre.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(pre), logits)
    assert model(images(1)).shape == (1, 5)


@every_model
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    model = small(name).train()
    wanted = gradients(model, model(images(4)))  # and every parameter has one
    model.set_grad_checkpointing()
    assert_same(gradients(model, model(images(4))), wanted)
    assert_same(gradients(model, model.forward_head(model.forward_intermediates(images(4))[0])), wanted)
    model.set_grad_checkpointing(False)
    assert_same(gradients(model, model(images(4))), wanted)


@pytest.mark.parametrize("channels", [1, 6])
@every_model
def test_input_channels(name: str, channels: int) -> None:
    model = small(name, in_chans=channels)
    assert model.in_chans == channels and model(images(channels=channels)).shape == (2, 5)


@every_model
def test_rates_of_dropout_reach_training_only(name: str) -> None:
    model, x = small(name, drop_rate=0.5, drop_path_rate=0.5), images(16)
    assert torch.equal(model(x), model(x))
    pre = model.train().forward_head(torch.ones(4, model.num_features, 2, 2), pre_logits=True)
    assert (pre == 0).any() and (pre == 2).any()


# The head.


@every_model
def test_number_of_classes_and_the_classifier(name: str) -> None:
    model, x = small(name), images()
    width = model.num_features
    pre = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3 and model.get_classifier().weight.shape[0] == 3
    model.reset_classifier(0)
    assert model.num_classes == 0 and isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), pre)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x)) and model(x).shape[1] == width
    model.reset_classifier(4, "catavgmax")
    assert model(x).shape == (2, 4) and model.head_hidden_size == 2 * width
    none = small(name, num_classes=0)
    assert none(x).shape == (2, width) and none.num_classes == 0
    assert torch.equal(small(name, num_classes=0, global_pool="")(x), none.forward_features(x))


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
@every_model
def test_global_pool(name: str, pool: str) -> None:
    model, x = small(name, global_pool=pool), images()
    features = model.forward_features(x)
    avg, max_ = features.mean((2, 3)), features.amax((2, 3))
    wanted = {"avg": avg, "max": max_, "avgmax": (avg + max_) / 2, "catavgmax": torch.cat([avg, max_], 1)}[pool]
    pre = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pre, wanted)
    assert model.head_hidden_size == pre.shape[1] and model(x).shape == (2, 5)


# Intermediate features.


@every_model
def test_intermediates_are_the_ones_asked_for(name: str) -> None:
    model, x = small(name), images()
    final, everything = model.forward_intermediates(x)
    n = len(everything)
    asked = {1: [n - 1], 2: [n - 2, n - 1], n: range(n), (0,): [0], (0, -1): [0, n - 1], (1, 2): [1, 2], None: range(n)}
    for indices, kept in asked.items():
        kwargs = {"indices": list(indices) if isinstance(indices, tuple) else indices, "output_fmt": "NCHW"}
        some = model.forward_intermediates(x, intermediates_only=True, **kwargs)
        last, again = model.forward_intermediates(x, **kwargs)
        assert len(some) == len(again) == len(kept) and torch.equal(last, final)
        for feature, other, index in zip(some, again, kept, strict=True):
            assert torch.equal(feature, everything[index]) and torch.equal(other, everything[index])
    for wrong in (n + 1, [n], [-n - 1]):
        with pytest.raises(AssertionError, match="out of range"):
            model.forward_intermediates(x, wrong)


@every_model
def test_intermediates_are_the_outputs_of_the_modules_in_feature_info(name: str) -> None:
    model, x = small(name), images()
    seen: list[Tensor] = []
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    for got, wanted in zip(model.forward_intermediates(x, intermediates_only=True), list(seen), strict=True):
        assert torch.equal(got, wanted)


@every_model
def test_norm_is_for_the_last_of_them(name: str) -> None:
    model, x = small(name), images()
    final, raw = model.forward_intermediates(x)
    same, normed = model.forward_intermediates(x, norm=True)
    assert torch.equal(same, final) and torch.equal(normed[-1], final)
    assert all(torch.equal(a, b) for a, b in zip(raw[:-1], normed[:-1], strict=True))
    torch.testing.assert_close(getattr(model, "norm", nn.Identity())(raw[-1]), final)


@every_model
def test_stop_early_runs_no_later_stage(name: str) -> None:
    model, x = small(name), images()
    wanted = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    later = model.get_submodule(model.feature_info[2]["module"])
    later.register_forward_hook(lambda *_: pytest.fail("a later stage was run"))
    final, some = model.forward_intermediates(x, indices=[0, 1], stop_early=True)
    assert torch.equal(some[0], wanted[0]) and torch.equal(some[1], wanted[1]) and torch.equal(final, wanted[1])


@pytest.mark.parametrize("feature_cls", [None, "list", "dict", "hook", "fx", "getter"])
@every_model
def test_features_only(name: str, feature_cls: str | None) -> None:
    kwargs = {} if feature_cls is None else {"feature_cls": feature_cls}
    whole, x = small(name), images()
    for indices in (None, (0, 2), (1,)):
        out = {} if indices is None else {"out_indices": indices}
        model = small(name, features_only=True, **kwargs, **out)
        wanted = whole.forward_intermediates(x, indices=indices, intermediates_only=True)
        got = model(x)
        got = list(got.values()) if isinstance(got, dict) else got
        assert model.feature_info.channels() == [f.shape[1] for f in wanted]
        assert model.feature_info.reduction() == [math.ceil(SIDE / f.shape[-1]) for f in wanted]
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other)


@every_model
def test_prune_intermediate_layers(name: str) -> None:
    whole, x = small(name), images()
    everything = whole.forward_intermediates(x, intermediates_only=True)
    last = len(everything) - 1
    for index, info in enumerate(whole.feature_info):
        model = copy.deepcopy(whole)
        assert model.prune_intermediate_layers([index]) == [index]
        assert model.num_features == model.head_hidden_size == info["num_chs"] and model.num_classes == 0
        assert torch.equal(model.forward_intermediates(x, [index], intermediates_only=True)[0], everything[index])
        assert model(x).shape == everything[index].shape and not list(model.get_classifier().parameters())
        if index < last:
            assert torch.equal(model(x), everything[index])
            gone = whole.feature_info[index + 1]["module"]
            assert not any(key.startswith((f"{gone}.", "norm.")) for key in model.state_dict())
    assert copy.deepcopy(whole).prune_intermediate_layers(1) == [last]
    whole_logits = whole(x)
    whole.prune_intermediate_layers([last], prune_head=False)
    assert torch.equal(whole(x), whole_logits)


# Optimizers.


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@every_model
def test_optimizer_groups_cover_every_parameter_once(name: str, layer_decay: float | None) -> None:
    model = small(name)
    optimizer = timm.optim.create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=5e-4, layer_decay=layer_decay)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    for group in optimizer.param_groups:
        assert all((p.ndim <= 1) == (group["weight_decay"] == 0) for p in group["params"]), "norms do not decay"
    if layer_decay is not None:
        scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
        first = scale[id(model.get_submodule(model.pretrained_cfg["first_conv"]).weight)]
        assert first == min(scale.values()) < max(scale.values()) == scale[id(model.get_classifier().weight)] == 1


@pytest.mark.parametrize("coarse", [False, True])
@every_model
def test_parameter_groups_follow_the_forward_pass(name: str, coarse: bool) -> None:
    model = small(name)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    assert any(n.startswith(model.pretrained_cfg["first_conv"]) for n in groups[0])
    assert any(n.startswith(model.pretrained_cfg["classifier"]) for n in groups[max(groups)])
    assert len(groups) >= len(model.feature_info)


# Copies, compilers and exporters.


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state dict"])
@every_model
def test_survives_being_copied(name: str, how: str) -> None:
    model, x = small(name), images()
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
        other = timm.create_model(name, num_classes=5, **SMALL.get(name.removesuffix("_arat"), {})).eval()
        other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@every_model
def test_compiles_as_one_graph(name: str, backend: str) -> None:
    model, x = small(name).train(), images(4)
    wanted = gradients(model, model(x))
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_same(gradients(model, compiled(x)), wanted)


@every_model
def test_exports_with_any_batch_size(name: str) -> None:
    model = small(name)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(program.module()(images(5)), model(images(5)))


# One of each class: an export takes seconds.
@pytest.mark.parametrize("name", ["resnet20_cifar_arat", "wide_resnet34_10_cifar_arat", "resnet50_arat"])
def test_exports_to_onnx(name: str) -> None:
    model, x = small(name), images()
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    evaluator = ReferenceEvaluator(program.model_proto)
    (logits,) = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(x), rtol=1e-4, atol=1e-5)
