"""From a DataConfig to the images to train on, to choose the checkpoint by, and to test on."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from timm_arat.data.config import DataConfig
from timm_arat.data.images import Images, Transform, check_labels
from timm_arat.data.sources import Source, open_source
from timm_arat.data.strata import subset

_AUTO_CACHE = 2**31  # bytes a split


@dataclass(frozen=True)
class Data:
    """The splits that were asked for (None otherwise) and the classes they share; `val` is part of no other split."""

    train: Images | None
    val: Images | None
    test: Images | None
    num_classes: int
    class_names: tuple[str, ...]


def load(
    config: DataConfig, *, input_size: tuple[int, int, int], splits: Collection[str] = ("train", "val", "test")
) -> Data:
    """Read the `splits` (of train, val, test) that `config` describes, for a model that takes `input_size` (C, H, W).

    `val` is held out of the training split by class and seed: `train` never holds it, asked for together or not.
    """
    if unknown := set(splits) - {"train", "val", "test"}:
        raise ValueError(f"splits {sorted(unknown)} are none of train, val, test")
    if input_size[0] != config.in_chans:
        raise ValueError(f"the model takes {input_size[0]} channels, data.in_chans={config.in_chans}")
    size = input_size[1:] if config.image_size is None else (config.image_size, config.image_size)
    wanted = {"train": "train" in splits or "val" in splits, "test": "test" in splits}
    names = {"train": config.train_split, "test": config.test_split}
    sources = {each: _open(config, names[each]) for each, is_wanted in wanted.items() if is_wanted}
    class_names = _shared_classes(config, sources)
    num_classes = config.num_classes or len(class_names)
    for each, source in sources.items():
        check_labels(source.labels, num_classes, f"data set {config.name!r}, split {names[each]!r}")

    fit = Fit(size, config.crop_pct, config.interpolation)
    found: dict[str, Images] = {}
    if "train" in sources:
        train, val = _hold_out(config, sources["train"])
        if "train" in splits:
            found["train"] = Images(sources["train"], train, fit, _augment(config, size), native=config.crop == "rrc")
        if "val" in splits and len(val):
            found["val"] = Images(sources["train"], val, fit)
    if "test" in sources:
        found["test"] = Images(sources["test"], torch.arange(len(sources["test"].labels)), fit)
    for each, images in found.items():
        # A folder says nothing of itself by the reader's name.
        images.name = config.root if config.name == "folder" and config.root else config.name
        images.split = names["test" if each == "test" else "train"]
    if config.cache != "never":
        for images in found.values():
            images.cache(None if config.cache == "always" else _AUTO_CACHE)
    return Data(found.get("train"), found.get("val"), found.get("test"), num_classes, class_names)


class Fit:
    """timm's evaluation transform to HxW; an image that has the size already only becomes a tensor, bit for bit."""

    def __init__(self, size: tuple[int, int], crop_pct: float, interpolation: str):
        from timm.data import create_transform
        from timm.data.transforms import MaybePILToTensor

        self.size, self.to_tensor = size, MaybePILToTensor()
        self.resize = create_transform((3, *size), crop_pct=crop_pct, interpolation=interpolation, normalize=False)

    def __call__(self, image: Any) -> torch.Tensor:
        size = tuple(image.shape[-2:]) if isinstance(image, torch.Tensor) else (image.height, image.width)
        if size == self.size:
            return self.to_tensor(image)
        resized = self.resize(image)
        # Bicubic interpolation of floats leaves [0, 1].
        return resized.clamp(0, 1) if resized.is_floating_point() else resized


def _augment(config: DataConfig, size: tuple[int, int]) -> Transform | None:
    from timm.data.transforms import MaybePILToTensor
    from torchvision import transforms

    # The first generation of torchvision's transforms: on one small tensor 3.5 times as fast as v2 (93 and 330 us).
    interpolation = transforms.InterpolationMode(config.interpolation)
    crops = {
        "none": [],
        "pad4": [transforms.RandomCrop(size, padding=4)],
        "rrc": [transforms.RandomResizedCrop(size, interpolation=interpolation)],
    }
    flip = [transforms.RandomHorizontalFlip(config.hflip)] if config.hflip else []
    steps = [*crops[config.crop], *flip]
    return transforms.Compose([*steps, MaybePILToTensor()]) if steps else None


def _open(config: DataConfig, split: str) -> Source:
    return open_source(
        config.name,
        split,
        root=config.root,
        in_chans=config.in_chans,
        download=config.download,
        input_key=config.input_key,
        target_key=config.target_key,
    )


def _hold_out(config: DataConfig, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the training and of the validation images."""
    num = len(source.labels)
    if config.val_size >= num:
        raise ValueError(
            f"data.val_size={config.val_size} leaves nothing of the {num} images of data.train_split="
            f"{config.train_split!r} to train on; give a smaller one"
        )
    val = subset(source.labels, config.val_size, config.val_seed)
    is_train = torch.ones(num, dtype=torch.bool)
    is_train[val] = False
    return is_train.nonzero()[:, 0], val


def _shared_classes(config: DataConfig, sources: dict[str, Source]) -> tuple[str, ...]:
    first, *rest = (source.class_names for source in sources.values())
    longest = max([first, *rest], key=len)
    for names in rest:
        named = any(name != str(index) for index, name in enumerate(longest))
        if named and names != first:
            odd = sorted(set(names) ^ set(first)) or "their order"
            raise ValueError(
                f"data set {config.name!r}: {config.train_split} and {config.test_split} differ in "
                f"their classes: {odd}; the same label would mean different things"
            )
    return longest
