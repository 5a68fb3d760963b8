"""The size that a model wants: how an image gets it for evaluation, and how to say so in timm's terms."""

from collections.abc import Sequence
from typing import Any

import torch


class Fit:
    """timm's evaluation transform to HxW without the normalisation: a PIL image or CxHxW tensor to a CxHxW tensor.

    The shorter side is resized to the size divided by `crop_pct`, and the middle kept. With `crop_pct` 1 an image of
    the size stays as it is, bit for bit. `preprocessing` describes exactly this transform, so that what a model was
    measured on is what its user feeds it.
    """

    def __init__(self, size: tuple[int, int], crop_pct: float, interpolation: str):
        from timm.data import create_transform

        self.size, self.crop_pct, self.interpolation = size, crop_pct, interpolation
        self.transform = create_transform((3, *size), crop_pct=crop_pct, interpolation=interpolation, normalize=False)

    def __call__(self, image: Any) -> torch.Tensor:
        fitted: torch.Tensor = self.transform(image)
        # Bicubic interpolation of floats leaves [0, 1].
        return fitted.clamp(0, 1) if fitted.is_floating_point() else fitted

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What a model's `pretrained_cfg` must say besides mean and std, which are the model's own.

        `create_transform(**resolve_model_data_config(model))` of a model whose `pretrained_cfg` was updated with it and
        with the input size gives the pixels of this transform, normalised. A pretrained source's other size and crop
        for tests are taken out.
        """
        return {
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "crop_mode": "center",
            "test_input_size": None,
            "test_crop_pct": None,
        }


def crop_pct_for(images: Sequence[Any], size: tuple[int, int], wanted: float) -> float:
    """1 where every one of `images` has the `size` (H, W) already, so that they stay as they are; else `wanted`.

    All or none: timm's transform has one `crop_pct`, and would resize and crop an image of the size by another.
    """
    return 1.0 if all(_size(images, index) == size for index in range(len(images))) else wanted


def _size(images: Sequence[Any], index: int) -> tuple[int, int]:
    """H, W of an image, from its file's header alone where that is possible."""
    if hasattr(images, "size"):
        size: tuple[int, int] = images.size(index)
        return size
    image = images[index]
    height, width = image.shape[-2:] if isinstance(image, torch.Tensor) else (image.height, image.width)
    return height, width
