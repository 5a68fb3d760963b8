"""Images by index, as pixels in [0, 1], from the disk or from memory, augmented or as they are."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import psutil
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from timm_arat.data.decode import TOLERANCE
from timm_arat.data.fit import Fit
from timm_arat.data.sources import Source

Transform = Callable[[Any], Any]  # a PIL image or CxHxW tensor to the same
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # NxCxHxW and N classes to mixed images and NxK soft labels


class Images(Dataset[tuple[Tensor, int]]):
    """Some images of a source: `images[i]` is a float tensor CxHxW in [0, 1] and a class index.

    Augmentation draws from the global generators of torch and, with data.transform, of numpy and `random`: of the
    process, or of the loader's worker, which the loader seeds from torch's. So it resumes when they are restored, and
    differs between ranks when they are seeded differently.
    """

    def __init__(
        self,
        source: Source,
        indices: Tensor,
        fit: Fit,
        augment: Transform | None = None,
        native: bool = False,
        mix: Mix | None = None,
        no_grid: str = "",
    ):
        """`fit` makes any image a tensor of the model's size; `augment` makes one of that size from a fitted image, or,
        with `native`, from one as it came. `mix` is for whole batches, which a data set of single images leaves to who
        collates them. `no_grid` says why there is no `grid`."""
        self.source: Source | None = source
        self.indices, self.labels = indices, source.labels[indices]
        self.fit, self.augment, self.native, self.mix, self.no_grid = fit, augment, native, mix, no_grid
        self.pixels: Tensor | None = None
        self.was_pil = False
        self.name, self.split = "images", ""  # what a result calls them

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._stored(index)
        if self.augment is not None:
            image = self.augment(image)
        elif self.native:
            image = self.fit(image)
        return to_unit(image), int(self.labels[index])

    def grid(self) -> Tensor:
        """Which pixels the augmentation takes, drawn as `images[i]` draws: under one seed, those of its image.

        1xHxW int32, 1 + the row-major number of a pixel before augmentation; 0 for padding.
        """
        if self.no_grid:
            raise ValueError(self.no_grid)
        return self._numbers if self.augment is None else self.augment(self._numbers)

    @cached_property
    def _numbers(self) -> Tensor:
        height, width = self._stored(0).shape[-2:]
        return torch.arange(1, height * width + 1, dtype=torch.int32).view(1, height, width)

    def relabel(self, to_other: Tensor) -> None:
        """Carry the labels into another list of classes: `to_other[label]` is the class there."""
        self.labels = to_other[self.labels]

    def plain(self) -> "Images":
        """The same images without augmentation, sharing the memory."""
        plain = copy.copy(self)
        plain.augment, plain.mix, plain.no_grid = None, None, ""
        return plain

    def cache(self, limit: int | None = None) -> bool:
        """Decode all into memory; says whether it did: not over `limit` bytes or half of the memory that is free, nor
        images of several sizes.

        With no limit, images of several sizes, or of more bytes than memory is free, are a ValueError.
        """
        from timm.data.transforms import MaybePILToTensor

        to_tensor = MaybePILToTensor()
        image = self._stored(0)
        first, was_pil = to_tensor(image), self.native and isinstance(image, Image)
        needed, free = first.numel() * first.element_size() * len(self), psutil.virtual_memory().available
        if limit is not None and needed > min(limit, free // 2):
            return False
        if needed > free:
            raise ValueError(
                f"{len(self)} images of {'x'.join(map(str, first.shape))} take {needed / 1e9:.3g} GB, and "
                f"{free / 1e9:.3g} GB of memory are free: set data.cache never, or a smaller data.image_size"
            )
        pixels = first.new_empty(len(self), *first.shape)
        for index in range(len(self)):
            image = to_tensor(self._stored(index))
            if image.shape != first.shape:
                if limit is None:
                    raise ValueError(
                        f"images have several sizes, {tuple(first.shape)} and {tuple(image.shape)}, so no "
                        "one tensor holds them: set data.cache auto, or another data.crop than rrc"
                    )
                return False
            pixels[index] = image
        self.pixels, self.source, self.was_pil = pixels, None, was_pil
        return True

    def _stored(self, index: int) -> Any:
        if self.pixels is not None:
            # timm's transforms resize Pillow's images otherwise than tensors: cached ones are not to be others.
            if not self.was_pil:
                return self.pixels[index]
            from torchvision.transforms.functional import to_pil_image

            return to_pil_image(self.pixels[index])
        assert self.source is not None
        image = self.source.images[int(self.indices[index])]
        return image if self.native else self.fit(image)


def tensors(dataset: Dataset[Any], indices: Tensor | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Images (NxCxHxW, float32 in [0, 1], not augmented) and labels (N) of a map-style data set, or of its `indices`.

    Raises ValueError for pixels outside [0, 1], which a data set with a normalising transform gives; what float
    arithmetic loses (1e-6) is clamped.
    """
    if isinstance(dataset, Images):
        dataset = dataset.plain()
    wanted = range(len(dataset)) if indices is None else torch.as_tensor(indices).tolist()  # type: ignore[arg-type]
    if not len(wanted):
        raise ValueError("no images: the data set or the choice of indices is empty")
    pairs = [dataset[index] for index in wanted]
    x = torch.stack([torch.as_tensor(image) for image, _ in pairs]).float()
    y = torch.tensor([int(label) for _, label in pairs])
    return check_images(x), y


def check_images(x: Tensor) -> Tensor:
    """`x`, or a copy clamped to [0, 1] where pixels leave it by no more than 1e-6; ValueError where they do."""
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 1:
        return x
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # not: so that NaN is caught
        raise ValueError(
            f"images are in [{low:.3g}, {high:.3g}], wanted pixels in [0, 1]: divide bytes by 255, and "
            "leave mean and std to the model (timm_arat.in_pixels)"
        )
    return x.clamp(0, 1)


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """ValueError, saying `where`, unless every label is in 0 ... `num_classes` - 1."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        way_out = "the split has no labels" if (labels < 0).all() else f"give data.num_classes of at least {high + 1}"
        raise ValueError(f"{where}: label {wrong} is not in 0 ... {num_classes - 1}; {way_out}")


def to_unit(image: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]; floats as they are."""
    return image.float().div(255) if image.dtype == torch.uint8 else image
