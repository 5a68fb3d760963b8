"""The CIFAR ResNets are those of the papers, and the arguments that are their own do what they say."""

from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from timm_arat.models import ResNetCifar

FAMILY = {"resnet20_cifar": 272_474, "resnet18_cifar": 11_173_962, "resnet50_cifar": 23_520_842}
TINY: dict[str, Any] = {"layers": (1, 2), "channels": (8, 16), "stem_width": 8, "num_classes": 5}


def tiny(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar", **{**TINY, **kwargs}).eval()


def images(n: int = 2, size: int = 16) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "parameters"), FAMILY.items())
def test_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert type(model) is ResNetCifar and model.num_classes == 10


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


@pytest.mark.parametrize("size", [8, 15, 40])
def test_any_image_size(size: int) -> None:
    assert tiny()(images(size=size)).shape == (2, 5)


def test_bottleneck_blocks_work_too() -> None:
    model = tiny(block=Bottleneck)
    assert model.num_features == 64 and model(images()).shape == (2, 5)


@pytest.mark.parametrize(("output_stride", "reductions"), [(2, [1, 1, 2, 2]), (8, [1, 1, 2, 4]), (32, [1, 1, 2, 4])])
def test_output_stride_counts_from_the_image(output_stride: int, reductions: list[int]) -> None:
    model = tiny(layers=(1, 1, 1), channels=(8, 8, 8), output_stride=output_stride)
    assert [info["reduction"] for info in model.feature_info] == reductions
    features = model.forward_intermediates(images(), intermediates_only=True)
    assert [16 // f.shape[-1] for f in features] == reductions


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


def test_layers_and_channels_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers=\(1, 2\) and channels=\(8, 16, 32\) need one number a stage each"):
        tiny(channels=(8, 16, 32))
