"""`in_pixels`: [0, 1] outside, the range of `pretrained_cfg` inside."""

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_arat import in_pixels


def images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def net(name: str = "test_resnet", **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vit_tiny_patch16_224.augreg_in21k", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("mobilevit_xxs", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ("resnet20_cifar", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ("resnet18_cifar", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
)
def test_mean_and_std_are_the_model_s_own(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    x = images()
    assert in_pixels(model).mean.device.type == "meta", "the constants are where the weights are"
    # The same settings on a model with weights.
    small = nn.Conv2d(3, 4, 1)
    small.pretrained_cfg = {key: model.pretrained_cfg[key] for key in ("mean", "std")}  # type: ignore[assignment]
    wanted = small((x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1))
    torch.testing.assert_close(in_pixels(small)(x), wanted)


def test_logits_are_those_of_the_normalised_image() -> None:
    model, x = net(), images()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))  # type: ignore[index]
    assert not torch.equal(in_pixels(model)(x), model(x)), "test_resnet normalises, or this test says nothing"
    assert torch.equal(in_pixels(model)(x), model((x - mean) / std))


def test_an_identity_normalisation_costs_nothing_and_changes_no_bit() -> None:
    model, x = net("resnet20_cifar", layers=(1, 1), channels=(8, 16), stem_width=8), images()
    assert in_pixels(model).normalize(x) is x
    assert torch.equal(in_pixels(model)(x), model(x))


def test_a_pretrained_overlay_is_honoured() -> None:
    model, x = net(pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 4.0)}), images()
    wanted = (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    assert torch.equal(in_pixels(model).normalize(x), wanted)


def test_weights_are_shared_and_the_argument_is_not_changed() -> None:
    model = net()
    keys = list(model.state_dict())
    pixels = in_pixels(model)
    assert pixels.model is model and list(model.state_dict()) == keys
    assert list(pixels.state_dict()) == [f"model.{key}" for key in keys], "mean and std are not weights"


@pytest.mark.parametrize("train", [False, True])
def test_the_wrapper_is_in_the_mode_of_the_model(train: bool) -> None:
    assert in_pixels(net().train(train)).training == train


def test_a_wrapped_model_is_returned_as_it_is() -> None:
    pixels = in_pixels(net())
    assert in_pixels(pixels) is pixels


def test_constants_follow_the_dtype_of_the_weights() -> None:
    pixels = in_pixels(net().to(torch.bfloat16))
    assert pixels(images().to(torch.bfloat16)).dtype == torch.bfloat16
    assert in_pixels(net()).double()(images().double()).dtype == torch.float64


def test_one_channel_takes_a_mean_that_is_the_same_for_all() -> None:
    grey = net("test_vit", in_chans=1, img_size=32, pretrained_cfg_overlay={"mean": (0.5,) * 3, "std": (0.25,) * 3})
    pixels = in_pixels(grey)
    assert torch.equal(pixels.normalize(images(1)), (images(1) - 0.5) / 0.25)
    assert pixels(images(1)).shape == (2, 1000)


def test_one_channel_with_a_mean_of_three_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match=r"for 3 channels, the model takes 1: pass pretrained_cfg_overlay"):
        in_pixels(net(in_chans=1, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)}))
    overlay = {"mean": (0.5,), "std": (0.25,)}
    assert in_pixels(net(in_chans=1, pretrained_cfg_overlay=overlay))(images(1)).shape == (2, 1000)


@pytest.mark.parametrize("cfg", [None, {}, {"mean": (0, 0, 0)}], ids=repr)
def test_a_model_without_mean_and_std_is_refused_with_the_way_out(cfg: object) -> None:
    model = nn.Conv2d(3, 4, 1)
    if cfg is not None:
        model.pretrained_cfg = cfg  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"Conv2d has no pretrained_cfg with mean and std.*set model\.pretrained_cfg"):
        in_pixels(model)


def test_a_first_convolution_behind_a_space_to_depth_is_not_taken_for_the_input() -> None:
    with torch.device("meta"):
        model = timm.create_model("tresnet_m", pretrained_cfg_overlay={"mean": (0.485, 0.456, 0.406)})
    assert in_pixels(model).mean.shape == (1, 3, 1, 1)
