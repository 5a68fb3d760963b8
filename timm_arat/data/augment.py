"""What happens to training images: crop and flip, timm's colours and erasing, and its mixing of whole batches."""

import inspect
from typing import Any

import torch
from torch import Tensor

from timm_arat.data.config import DataConfig
from timm_arat.data.images import Mix, Transform, to_unit


def augmentation(config: DataConfig, size: tuple[int, int]) -> Transform | None:
    """The training transform of `config` to images of `size` (H, W); None where images stay as they are.

    Raises:
        ValueError: timm does not take the value of an option.
    """
    from timm.data.transforms import MaybePILToTensor
    from torchvision import transforms

    if config.transform:
        return Augment(config, size)
    # The first generation of torchvision's transforms: on one small tensor 3.5 times as fast as v2 (93 and 330 us).
    interpolation = transforms.InterpolationMode(config.interpolation)
    steps = _flips(config)
    if config.crop == "rrc":
        steps = [transforms.RandomResizedCrop(size, interpolation=interpolation), InUnit(), *steps]
    elif config.crop == "pad4":
        steps = [transforms.RandomCrop(size, padding=4), *steps]
    return transforms.Compose([*steps, MaybePILToTensor()]) if steps else None


def mixing(config: DataConfig, num_classes: int) -> Mix | None:
    """timm's `Mixup` with the options of data.mixup; None without them.

    x: NxCxHxW, N even, changed in place. y: N, long. Returns x and NxK float32 labels, each row with sum 1.
    """
    if not config.mixup:
        return None
    from timm.data import Mixup

    # What is not named is off; timm would mix with alpha 1 and smooth labels by 0.1.
    return Mixup(**{"mixup_alpha": 0.0, "label_smoothing": 0.0, **config.mixup}, num_classes=num_classes)


class Augment:
    """Geometry, then colour, then erasing, in timm's order: a PIL image or CxHxW tensor to a tensor.

    Geometry is data.crop (rrc is timm's, with its options), data.hflip and vflip. Colour (auto_augment, color_jitter,
    grayscale_prob, gaussian_blur_prob) is timm's, on 8-bit images, to which float pixels are rounded. Erasing is
    `Erase`. Draws come from the generators of torch, numpy and `random`.
    """

    def __init__(self, config: DataConfig, size: tuple[int, int]):
        from timm.data.transforms import MaybePILToTensor
        from torchvision import transforms

        options = {"interpolation": config.interpolation, "color_jitter": None, **config.transform}
        mean, std = _mean_and_std(config.in_chans)
        try:
            cropped, self.colour, _ = _create(size, options, hflip=config.hflip, mean=mean)
            self.erase = Erase(options, mean, std) if options.get("re_prob") else None
        except Exception as error:  # asserts, KeyErrors and more
            said = str(error) or type(error).__name__
            known = "; auto_augment is such as rand-m9-mstd0.5-inc1, augmix-m3-w3, 3a or original"
            raise ValueError(
                f"data.transform: timm does not take {config.transform}: {said}{known * ('auto_augment' in options)}"
            ) from error
        if options.get("gaussian_blur_prob") and min(size) < 12:
            raise ValueError(
                f"data.transform.gaussian_blur_prob: timm's blur wants at least 12 pixels a side, not {size}"
            )
        if config.crop == "rrc":
            self.geometry = transforms.Compose([*cropped.transforms, InUnit()])
        else:
            crop = [transforms.RandomCrop(size, padding=4)] if config.crop == "pad4" else []
            vflip = [transforms.RandomVerticalFlip(options["vflip"])] if options.get("vflip") else []
            self.geometry = transforms.Compose([*crop, *_flips(config), *vflip])
        self.to_tensor = MaybePILToTensor()

    def __call__(self, image: Any) -> Tensor:
        image = self.geometry(image)
        if self.colour.transforms:
            image = self.colour(_to_picture(image))
        image = to_unit(self.to_tensor(image))
        return image if self.erase is None else self.erase(image)


class Erase:
    """timm's random erasing of a CxHxW float image in [0, 1] (arXiv:1708.04896).

    timm draws what it fills with for normalised images: zeros (re_mode const), or standard normal noise, one number a
    channel (rand) or a pixel (pixel). In pixels that is the mean of ImageNet, or noise around it with ImageNet's
    standard deviation, clamped to [0, 1].
    """

    def __init__(self, options: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]):
        from timm.data.random_erasing import RandomErasing

        self.erase = RandomErasing(
            options["re_prob"],
            mode=options.get("re_mode", "const"),
            max_count=options.get("re_count", 1),
            device="cpu",
        )
        self.mean, self.std = (torch.tensor(each)[:, None, None] for each in (mean, std))

    def __call__(self, x: Tensor) -> Tensor:
        filled = self.erase(torch.full_like(x, torch.nan))
        return torch.where(filled.isnan(), x, (filled * self.std + self.mean).clamp(0, 1))


class InUnit:
    """Float pixels back into [0, 1], which bicubic interpolation leaves; others as they are."""

    def __call__(self, image: Any) -> Any:
        return image.clamp(0, 1) if isinstance(image, Tensor) and image.is_floating_point() else image


def _create(size: tuple[int, int], options: dict[str, Any], **more: Any) -> Any:
    from timm.data import create_transform

    taken = inspect.signature(create_transform).parameters
    if old := sorted(set(options) - set(taken)):
        raise ValueError(f"the installed timm has no {', '.join(old)}")
    return create_transform((3, *size), is_training=True, separate=True, normalize=False, **options, **more)


def _flips(config: DataConfig) -> list[Any]:
    from torchvision import transforms

    return [transforms.RandomHorizontalFlip(config.hflip)] if config.hflip else []


def _mean_and_std(in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's, timm's default; for grey images the average over the colours."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    both = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
    return both if in_chans == 3 else ((sum(both[0]) / 3,), (sum(both[1]) / 3,))


def _to_picture(image: Any) -> Any:
    """A tensor as PIL image."""
    from torchvision.transforms.functional import to_pil_image

    if not isinstance(image, Tensor):
        return image
    return to_pil_image(image.mul(255).round().byte() if image.is_floating_point() else image)
