"""From a DataConfig to the images to train on, to choose the checkpoint by, and to test on."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from timm_arat.data.augment import augmentation, mixing
from timm_arat.data.config import DataConfig
from timm_arat.data.fit import Fit, crop_pct_for
from timm_arat.data.images import Images, check_labels
from timm_arat.data.labels import shortened
from timm_arat.data.options import why_no_grid
from timm_arat.data.sources import Source, is_same_split, open_source
from timm_arat.data.strata import subset

_AUTO_CACHE = 2**31  # bytes a split


@dataclass(frozen=True)
class Data:
    """The splits that were asked for (None otherwise) and the classes they share; `val` is part of no other split.

    class_names: Of the training split, where it was read; labels of all splits are indices into it.
    size: Height and width of the images in pixels, as a model gets them.
    preprocessing: What a `pretrained_cfg` must say for timm to prepare images as these are, see `Fit`.
    notes: What a person should be told, a line each: files that were left out.
    """

    train: Images | None
    val: Images | None
    test: Images | None
    num_classes: int
    class_names: tuple[str, ...]
    size: tuple[int, int]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load(
    config: DataConfig, *, input_size: tuple[int, int, int], splits: Collection[str] = ("train", "val", "test")
) -> Data:
    """Read the `splits` (of train, val, test) that `config` describes, for a model that takes `input_size` (C, H, W).

    `val` is data.val_split or held out of the training split by class and seed: `train` never holds it, asked for
    together or not. A mistake in the configuration is a ValueError before any image is read.
    """
    if unknown := set(splits) - {"train", "val", "test"}:
        raise ValueError(f"splits {sorted(unknown)} are none of train, val, test")
    if input_size[0] != config.in_chans:
        raise ValueError(f"the model takes {input_size[0]} channels, data.in_chans={config.in_chans}")
    size = input_size[1:] if config.image_size is None else (config.image_size, config.image_size)
    augment = augmentation(config, size)  # before images are read, so that its mistakes need not wait for them
    names = _split_names(config, splits)
    opened = {each: _open(config, name) for each, name in names.items()}
    sources = _in_one_list(config, opened, names)
    class_names = next(iter(sources.values())).class_names
    num_classes = config.num_classes or len(class_names)
    for each, source in sources.items():
        check_labels(source.labels, num_classes, f"data set {config.name!r}, split {names[each]!r}")

    # By the images that are tested, where they are read: what is exported must say how these were prepared.
    judged = sources.get("test") or sources.get("val") or sources["train"]
    fit = Fit(size, crop_pct_for(judged.images, size, config.crop_pct), config.interpolation)
    found: dict[str, Images] = {}
    if "train" in sources:
        train, val = _hold_out(config, sources["train"])
        if "train" in splits:
            found["train"] = Images(
                sources["train"], train, fit, augment, native=config.crop == "rrc", mix=mixing(config, num_classes),
                no_grid=why_no_grid(config.transform, config.mixup, config.crop),
            )  # fmt: skip
        if "val" in splits and len(val):
            found["val"] = Images(sources["train"], val, fit)
    for each in ("val", "test"):
        if each in sources:
            found[each] = Images(sources[each], torch.arange(len(sources[each].labels)), fit)
    for each, images in found.items():
        # A folder says nothing of itself by the reader's name.
        images.name = config.root if config.name == "folder" and config.root else config.name
        images.split = names.get(each, config.train_split)
    if config.cache != "never":
        for images in found.values():
            images.cache(None if config.cache == "always" else _AUTO_CACHE)
    notes = tuple(
        f"{names[each]}: {note}"
        for each, source in sources.items()
        for note in (*source.notes, *_without_images(source))
    )
    return Data(
        found.get("train"),
        found.get("val"),
        found.get("test"),
        num_classes,
        class_names,
        size,
        fit.preprocessing,
        notes,
    )


def _split_names(config: DataConfig, splits: Collection[str]) -> dict[str, str]:
    """The splits to read, training first, and their names in the data set."""
    names = {"train": config.train_split, "test": config.test_split}
    wanted = {"train": "train" in splits, "test": "test" in splits}
    if config.val_split is None:
        wanted["train"] |= "val" in splits  # of which it is a part
    else:
        for other in ("train", "test"):
            if is_same_split(config.name, config.val_split, names[other]):
                raise ValueError(
                    f"data.val_split={config.val_split!r} is data.{other}_split={names[other]!r} too: choose the "
                    "checkpoint by other images, data.val_size training images for example"
                )
        names["val"], wanted["val"] = config.val_split, "val" in splits
    return {each: names[each] for each in ("train", "val", "test") if wanted.get(each)}


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


def _without_images(source: Source) -> tuple[str, ...]:
    """What to tell of classes that a split has no image of."""
    counts = torch.bincount(source.labels, minlength=len(source.class_names)).tolist()
    empty = [name for name, count in zip(source.class_names, counts, strict=False) if not count]
    if not empty:
        return ()
    return (f"{len(empty)} of {len(source.class_names)} classes have no image: {shortened(empty)}",)


def _in_one_list(config: DataConfig, sources: dict[str, Source], names: dict[str, str]) -> dict[str, Source]:
    """The sources with their labels in one list of classes: the training split's, where it is read.

    Where a reader has names, a class keeps its name and takes the number that this has in the list; a split may lack
    some. Numbers that a reader does not name mean the same in all splits.
    """
    named = [each for each, source in sources.items() if source.is_named]
    lists = [source.class_names for source in sources.values()]
    shared = sources[named[0]].class_names if named else max(lists, key=len)
    found = {}
    for each, source in sources.items():
        if source.is_named and source.class_names != shared:
            where = f"data set {config.name!r}, split {names[each]!r}"
            check_labels(source.labels, len(source.class_names), where)
            used = [source.class_names[label] for label in source.labels.unique().tolist()]
            if unknown := [name for name in used if name not in shared]:
                raise ValueError(
                    f"{where} has images of the classes {shortened(unknown)}, which {names[named[0]]!r} has not; it "
                    f"has {shortened(shared)}: take them out, or train on them too"
                )
            numbers = [shared.index(name) if name in shared else -1 for name in source.class_names]
            source = replace(source, labels=torch.tensor(numbers)[source.labels])
        found[each] = replace(source, class_names=shared)
    return found
