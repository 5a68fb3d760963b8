"""wide_resnet34_10_cifar is the WRN-34-10 of TRADES, and split norms and ARAT work on it."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers_norm import shift_aux, verify_split
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from timm_arat import ARAT, PGD
from timm_arat.models import WideResNetCifar
from timm_arat.norm import convert_split_norm, is_split, merge_split_norm, norm_branch, split_norms


def narrow(**kwargs: Any) -> Any:
    """WRN-16-1 with the stem of its own width, and norms that are not the identity."""
    torch.manual_seed(0)
    settings = {"layers": (2, 2, 2), "channels": (16, 32, 64), "stem_chs": 8, "num_classes": 5, **kwargs}
    model = timm.create_model("wide_resnet34_10_cifar", **settings).eval()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                for tensor in (norm.bias, norm.running_mean):
                    tensor.normal_(0, 0.3)  # type: ignore[union-attr]
                norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model


def images(n: int = 4, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("depth", "width", "parameters"),
    [(34, 10, 46_160_474), (28, 10, 36_479_194), (16, 4, 2_748_890), (40, 2, 2_243_546)],
)
def test_number_of_parameters(depth: int, width: int, parameters: int) -> None:
    kwargs: dict[str, Any] = {"layers": ((depth - 4) // 6,) * 3, "channels": (16 * width, 32 * width, 64 * width)}
    with torch.device("meta"):
        model = timm.create_model("wide_resnet34_10_cifar", **({} if (depth, width) == (34, 10) else kwargs))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert type(model) is WideResNetCifar and model.num_classes == 10
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == depth - 3, (
        "the depth counts these, three shortcuts and the linear layer... of which one"
    )


def as_in_trades(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names of TRADES' models/wideresnet.py."""
    renamed = {}
    for key, value in weights.items():
        if key.startswith("stages."):
            _, stage, _, block, rest = key.split(".", 4)
            rest = rest.replace("downsample.conv", "convShortcut").replace("norm", "bn")
            key = f"block{int(stage) + 1}.layer.{block}.{rest}"
        renamed[key.replace("stem.conv", "conv1").replace("head.fc", "fc").replace("norm.", "bn1.")] = value
    return renamed


def trades_logits(w: dict[str, Tensor], x: Tensor, blocks: int, training: bool = False) -> Tensor:
    """TRADES' forward pass from weights alone: 3x3 stem, three stages, norm, ReLU, 8x8 average pool, linear."""

    def rectified_norm(name: str, z: Tensor) -> Tensor:
        mean, var = w[f"{name}.running_mean"].clone(), w[f"{name}.running_var"].clone()
        return F.relu(F.batch_norm(z, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], training))

    z = F.conv2d(x, w["conv1.weight"], padding=1)
    for stage, first_stride in ((1, 1), (2, 2), (3, 2)):
        for i in range(blocks):
            name, stride = f"block{stage}.layer.{i}", first_stride if i == 0 else 1
            active = rectified_norm(f"{name}.bn1", z)
            inner = rectified_norm(f"{name}.bn2", F.conv2d(active, w[f"{name}.conv1.weight"], stride=stride, padding=1))
            shortcut = w.get(f"{name}.convShortcut.weight")  # where the width changes, of the activation
            z = z if shortcut is None else F.conv2d(active, shortcut, stride=stride)
            z = z + F.conv2d(inner, w[f"{name}.conv2.weight"], padding=1)
    z = F.avg_pool2d(rectified_norm("bn1", z), 8).flatten(1)
    return F.linear(z, w["fc.weight"], w["fc.bias"])


@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_wide_resnet_of_trades(training: bool) -> None:
    model, x = narrow().train(training), images()
    weights = as_in_trades({key: value.clone() for key, value in model.state_dict().items()})
    shortcuts = [key for key in weights if "convShortcut" in key]
    assert shortcuts == [f"block{i}.layer.0.convShortcut.weight" for i in (1, 2, 3)]
    torch.testing.assert_close(model(x), trades_logits(weights, x, 2, training), rtol=1e-5, atol=1e-5)


def test_the_first_shortcut_goes_where_the_width_does_not_change() -> None:
    model, x = narrow(channels=(8, 16, 32)), images()
    assert model.stages[0].blocks[0].downsample is None
    torch.testing.assert_close(model(x), trades_logits(as_in_trades(model.state_dict()), x, 2), rtol=1e-5, atol=1e-5)


def test_initialisation_is_timm_s() -> None:
    """Kaiming-normal convolutions (fan out, as TRADES'), a small classifier; no block starts as its shortcut."""
    model = timm.create_model("wide_resnet34_10_cifar", layers=(1, 1, 1), channels=(64, 64, 128), num_classes=100)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.bias is None and module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.1) and (model.head.fc.bias == 0).all()
    assert (narrow(zero_init_last=True).stages[0].blocks[0].conv2.weight == 0).all()


@pytest.mark.parametrize(("output_stride", "reductions"), [(1, [1, 1, 1, 1]), (2, [1, 1, 2, 2]), (8, [1, 1, 2, 4])])
def test_output_stride_counts_from_the_image(output_stride: int, reductions: list[int]) -> None:
    model = narrow(output_stride=output_stride)
    assert [info["reduction"] for info in model.feature_info] == reductions
    features = model.forward_intermediates(images(1), intermediates_only=True)
    assert [32 // f.shape[-1] for f in features] == reductions


def test_layers_and_channels_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers=\(1, 1\) and channels=\(16, 32, 64\) need one number a stage each"):
        narrow(layers=(1, 1))


@pytest.mark.parametrize("size", [8, 15, 40])
def test_any_image_size(size: int) -> None:
    assert narrow()(images(size=size)).shape == (4, 5)


def test_split_norms_and_the_way_back() -> None:
    model, x = narrow(), images(8)
    plain = model(x)
    convert_split_norm(model)
    assert len(list(split_norms(model))) == 13, "two a block, and the last"
    verify_split(model, x)
    shift_aux(model)
    both = {}
    with norm_branch(model, "main"):
        both["main"] = model(x)
    with norm_branch(model, "aux"):
        both["aux"] = model(x)
    assert torch.equal(both["main"], plain) and not torch.allclose(both["aux"], plain)
    with norm_branch(model, "both"):
        torch.testing.assert_close(model(torch.cat([x, x])), torch.cat([both["main"], both["aux"]]))
    merge_split_norm(model)
    assert not is_split(model) and type(model) is WideResNetCifar and type(model.norm) is BatchNormAct2d
    assert torch.equal(model(x), plain)
    assert list(model.state_dict()) == list(narrow().state_dict())


@pytest.mark.parametrize("layers", [(), ("paper",)])
def test_a_step_of_arat_trains_every_parameter(layers: tuple[str, ...]) -> None:
    x, y = images(4, size=16), torch.tensor([0, 1, 2, 3])
    method = ARAT(narrow(), attack=PGD(eps=8 / 255, steps=1), layers=layers).train()
    method.set_clean_accuracy(0.5)
    terms = method(x, y)
    assert len(method.predictors) == (5 if layers else 1)
    terms["loss"].backward()
    for name, p in method.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert not is_split(merge_split_norm(method.model))
