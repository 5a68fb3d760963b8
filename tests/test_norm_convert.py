"""Conversion keeps the function, the objects and the flags, and refuses what it does not know."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from helpers_norm import shift_aux
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d, DropBlock2d, EvoNorm2dB0, SplitBatchNorm2d, convert_splitbn_model
from timm.utils import ModelEmaV3
from torch import nn

from timm_arat.norm import SplitNorm, batch_norms, convert_split_norm, norm_branch, split_norms
from timm_arat.norm._table import SPLIT_CLASSES


def resnet() -> Any:
    return timm.create_model("test_resnet", num_classes=5)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def example(kind: type[nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    """A norm of this class over 8 channels, not at its initial values, and an input that it takes."""
    is_group = issubclass(kind, nn.GroupNorm)
    norm: Any = kind(4, 8) if kind is nn.GroupNorm else kind(8, 4) if is_group and "1" not in kind.__name__ else kind(8)
    if "SyncBatchNormAct" in kind.__name__:  # made by timm's conversion only, which adds these
        norm.act, norm.drop = nn.ReLU(), nn.Identity()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(0.5, 1.5)
    channels_last = issubclass(kind, (nn.LayerNorm, nn.RMSNorm)) or kind.__name__.startswith(("Rms", "Simple"))
    if "1d" in kind.__name__:
        return norm, torch.randn(6, 8)
    if "3d" in kind.__name__:
        return norm, torch.randn(6, 8, 2, 2, 2)
    return norm, torch.randn(6, 3, 8) if channels_last and "2d" not in kind.__name__ else torch.randn(6, 8, 3, 3)


@pytest.mark.parametrize("kind", SPLIT_CLASSES, ids=lambda kind: f"{kind.__module__.split('.')[0]}.{kind.__name__}")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_class_of_the_table_computes_what_it_did(kind: type[nn.Module], training: bool) -> None:
    norm, x = example(kind)
    plain = copy.deepcopy(norm.train(training))
    twin = copy.deepcopy(plain)
    model: Any = convert_split_norm(nn.Sequential(norm), norms=[kind])
    assert model[0] is norm and isinstance(norm, kind) and isinstance(norm, SplitNorm)
    with norm_branch(model, "main"):
        assert torch.equal(model(x), plain(x))
    with norm_branch(model, "aux"):
        assert torch.equal(model(x), twin(x))
    with norm_branch(model, "both"):
        # One pass through each half, with the statistics that each has by now.
        assert torch.equal(model(x), torch.cat([plain(x[:3]), twin(x[3:])]))
    for name, value in tensors(plain).items():
        assert torch.equal(getattr(norm, name), value)
    for name, value in tensors(twin).items():
        assert torch.equal(getattr(norm.aux_bn[0], name), value)
    assert type(pickle.loads(pickle.dumps(norm))) is SPLIT_CLASSES[kind]


def test_objects_keys_and_optimizer_survive() -> None:
    model = resnet()
    modules, parameters = list(model.modules()), list(model.parameters())
    state = model.state_dict()
    assert convert_split_norm(model) is model
    assert all(any(m is n for n in model.modules()) for m in modules)
    assert all(any(p is q for q in model.parameters()) for p in parameters)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert {key.replace(".aux_bn.0.", ".") for key in after.keys() - state.keys()} <= state.keys()
    assert all(".aux_bn.0." in key for key in after.keys() - state.keys())


def test_flags_dtype_hooks_and_attributes_are_kept() -> None:
    model = resnet().double().eval()
    norm = model.bn1
    norm.momentum, norm.eps, norm.note = None, 1e-2, "mine"
    norm.weight.requires_grad_(False)
    model.layer1[0].bn1.train()
    calls: list[int] = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    convert_split_norm(model)
    aux = norm.aux_bn[0]
    assert (aux.momentum, aux.eps, norm.note) == (None, 1e-2, "mine")
    assert aux.weight.dtype == torch.float64 and aux.num_batches_tracked.dtype == torch.int64
    assert not aux.weight.requires_grad and aux.bias.requires_grad
    assert not any(m.training for m in norm.modules()) and all(m.training for m in model.layer1[0].bn1.modules())
    for branch in ("main", "aux", "both"):
        with norm_branch(model, branch):
            model(torch.rand(2, 3, 32, 32).double())
    assert len(calls) == 3, "a hook of the norm runs once a pass, whatever the branch"


@pytest.mark.parametrize("settings", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str)
def test_unusual_settings(settings: Any) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, **settings))
    model = convert_split_norm(copy.deepcopy(plain))
    x = torch.randn(8, 3, 4, 4)
    twin = copy.deepcopy(plain)
    for _ in range(2):
        with norm_branch(model, "both"):
            assert torch.allclose(model(x), torch.cat([plain(x[:4]), twin(x[4:])]), atol=1e-6)
    with norm_branch(model.eval(), "aux"):
        assert torch.allclose(model(x), twin.eval()(x), atol=1e-6)


def test_act_and_drop_are_shared() -> None:
    norm = BatchNormAct2d(4, act_layer=nn.PReLU, drop_layer=nn.Dropout2d)
    model = convert_split_norm(nn.Sequential(norm))
    assert sum(isinstance(m, nn.PReLU) for m in model.modules()) == 1
    assert not [key for key in model.state_dict() if "aux_bn" in key and "act" in key]
    assert type(norm.drop) is nn.Dropout2d
    with norm_branch(model, "both"):
        model(torch.randn(8, 4, 3, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dropblock_inside_a_norm_still_drops() -> None:
    model = convert_split_norm(timm.create_model("resnet51q", num_classes=3, drop_block_rate=0.9))
    blocks = [name for name, module in model.named_modules() if isinstance(module, DropBlock2d)]
    assert blocks and not any("aux_bn" in name for name in blocks)
    shift_aux(model.train())  # the last norm of each block starts at zero and would hide it
    x = torch.rand(4, 3, 64, 64)
    with norm_branch(model, "aux"):
        assert not torch.equal(model(x), model(x))


def test_a_shared_module_is_split_once() -> None:
    norm = nn.BatchNorm2d(4)
    model = convert_split_norm(nn.Sequential(norm, nn.ReLU(), norm))
    assert len(list(split_norms(model))) == len(list(batch_norms(model))) == 1
    assert len({id(p) for p in model.parameters()}) == 4


def test_conversion_is_idempotent_and_walks_do_not_count_aux() -> None:
    model = resnet()
    before = [name for name, _ in batch_norms(model)]
    keys = list(convert_split_norm(model).state_dict())
    assert list(convert_split_norm(model).state_dict()) == keys
    assert [name for name, _ in batch_norms(model)] == before == [name for name, _ in split_norms(model)]


@pytest.mark.parametrize("classes", [0, 7])
def test_reset_classifier_is_noticed_and_cured(classes: int) -> None:
    model: Any = convert_split_norm(timm.create_model("levit_128s", num_classes=5, img_size=64))
    model.reset_classifier(classes)
    with pytest.raises(ValueError, match="reset_classifier call convert_split_norm"), norm_branch(model, "main"):
        pass
    convert_split_norm(model)
    with norm_branch(model, "both"):
        model(torch.rand(4, 3, 64, 64))
    assert all(isinstance(norm, SplitNorm) for _, norm in batch_norms(model))


def test_meta_device() -> None:
    with torch.device("meta"):
        model = convert_split_norm(resnet())
    assert all(p.is_meta for p in model.parameters())


def test_copies_have_a_mode_of_their_own() -> None:
    model = convert_split_norm(resnet())
    with norm_branch(model, "aux"):
        twin = copy.deepcopy(model)
    assert {n.branch for _, n in split_norms(twin)} == {"aux"} and {n.branch for _, n in split_norms(model)} == {"main"}
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.bn1.aux_bn[0].weight.fill_(3.0)
    with norm_branch(model, "aux"):
        ema.update(model)
        assert {n.branch for _, n in split_norms(ema.module)} == {"main"}
    assert torch.equal(ema.module.bn1.aux_bn[0].weight, torch.full_like(model.bn1.weight, 2.0))
    with norm_branch(ema.module, "both"):
        ema.module(torch.rand(4, 3, 32, 32))


def test_the_model_pickles_and_saves(tmp_path: Any) -> None:
    model = convert_split_norm(resnet()).eval()
    x = torch.rand(4, 3, 32, 32)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other: Any = convert_split_norm(resnet()).eval()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for twin in (again, other):
        with norm_branch(model, "both"), norm_branch(twin, "both"):
            assert torch.equal(model(x), twin(x))
    storages = [p.untyped_storage().data_ptr() for p in model.state_dict().values()]
    assert len(set(storages)) == len(storages)


class MyNorm(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    "layer", [MyNorm(3), EvoNorm2dB0(3), nn.LazyBatchNorm2d(), nn.InstanceNorm2d(3, track_running_stats=True)], ids=repr
)
def test_unknown_batch_coupled_norms_are_refused_by_name(layer: nn.Module) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), layer)
    with pytest.raises(ValueError, match=rf"1 \(\w+ {type(layer).__name__}\)"):
        convert_split_norm(model)
    assert type(model[0]) is nn.BatchNorm2d, "a refused model is as it was"


def test_frozen_norms_before_the_split_are_constants() -> None:
    model = resnet()
    model.layer1 = timm.layers.freeze_batch_norm_2d(model.layer1)
    convert_split_norm(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with norm_branch(model.train(), "both"):
        model(torch.rand(4, 3, 32, 32))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and not any(key.startswith("layer1.") for key in moved)


def test_no_batch_norm_names_the_norms_and_the_option() -> None:
    with pytest.raises(ValueError, match=r"no BatchNorm.*LayerNorm2d.*norms='all'"):
        convert_split_norm(timm.create_model("test_convnext"))
    with pytest.raises(ValueError, match="no BatchNorm, nor another norm"):
        convert_split_norm(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(ValueError, match="norms='layer'"):
        convert_split_norm(resnet(), norms="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no parameter in norms of \['LayerNorm'\]"):
        convert_split_norm(resnet(), norms=[nn.LayerNorm])


def test_affine_split_on_request() -> None:
    model: Any = convert_split_norm(timm.create_model("test_vit", num_classes=5), norms="all").eval()
    x = torch.rand(4, 3, *model.patch_embed.img_size)
    y = model(x)
    with torch.no_grad():
        model.norm.aux_bn[0].bias.add_(1.0)
    with norm_branch(model, "both"):
        joint = model(x)
    assert torch.allclose(joint[:2], y[:2], atol=1e-6) and not torch.allclose(joint[2:], y[2:], atol=1e-3)


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.convert_sync_batchnorm])
def test_sync_first_split_second(convert: Any) -> None:
    model = convert_split_norm(convert(timm.create_model("test_byobnet", num_classes=5)))
    kinds = {type(norm).__name__ for _, norm in split_norms(model)}
    assert kinds == {"SplitSyncBatchNorm" if convert.__module__.startswith("torch") else "SplitTimmSyncBatchNormAct"}
    with norm_branch(model, "both"):
        model(torch.rand(4, 3, 32, 32))


BREAKERS = [
    nn.SyncBatchNorm.convert_sync_batchnorm,
    timm.layers.convert_sync_batchnorm,
    timm.layers.freeze_batch_norm_2d,
    convert_splitbn_model,
]


@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda f: f"{f.__module__.split('.')[0]}.{f.__name__}")
def test_a_split_that_other_code_broke_is_refused(breaker: Any) -> None:
    model = convert_split_norm(resnet())
    model = breaker(model)
    with pytest.raises(ValueError, match="own an aux_bn but are not split|were split and are no longer"):
        with norm_branch(model, "main"):
            pass


def test_dead_aux_and_timm_split_batch_norm_are_refused() -> None:
    broken = timm.layers.convert_sync_batchnorm(convert_split_norm(resnet()))
    with pytest.raises(ValueError, match="SyncBatchNorm first"):
        convert_split_norm(broken)
    with pytest.raises(ValueError, match=SplitBatchNorm2d.__name__):
        convert_split_norm(convert_splitbn_model(resnet()))
