"""The images of an evaluation: chosen from a data set, loaded once, and known again by a fingerprint."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from timm_arat.data import DataConfig, Images, Matched, load, match_labels, subset, tensors
from timm_arat.evaluation._robustness import ImageSet, add_fingerprints
from timm_arat.pixels import InPixels

Data = DataConfig | Dataset[Any] | DataLoader[Any] | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Selection:
    """x: NxCxHxW in [0, 1]. y: N. positions: N, ascending, where they are in the data set.

    pgd, autoattack: where in x the images for clean and PGD, and those for AutoAttack, are.
    """

    x: Tensor
    y: Tensor
    positions: Tensor
    pgd: Tensor
    autoattack: Tensor
    source: ImageSet


def select(
    data: Data,
    net: nn.Module,
    *,
    pgd_images: int | None,
    autoattack_images: int | None,
    seed: int,
    shard: Iterable[int] | None,
) -> Selection:
    """Load the images that one of the two numbers chooses, for the model `net`; with a `shard`, those of them in it.

    A number of None is all images, 0 none.

    Raises:
        ValueError: the data cannot be read or are no images in [0, 1], or a number or the shard does not fit them.
    """
    dataset, name, split, matched = _open(data, net)
    labels = _labels(dataset)
    mine = _in_shard(len(labels), shard)
    chosen = [_choose(labels, number, seed, mine) for number in (pgd_images, autoattack_images)]
    positions = torch.cat(chosen).unique()
    if not len(positions):
        raise ValueError(f"none of the {len(labels)} images is left: indices hold none of those that are chosen")
    x, y = tensors(dataset, positions)
    y = y if matched is None else matched.to_other[y]
    if x.ndim != 4:
        raise ValueError(f"images are of shape {tuple(x.shape[1:])}, wanted CxHxW")
    source = ImageSet(
        name=name,
        split=split,
        size=len(labels),
        labels=hashlib.blake2b(labels.long().numpy().tobytes(), digest_size=16).hexdigest(),
        autoattack_images=autoattack_images or None,
        seed=seed,
        stratified=autoattack_images is not None and 0 < autoattack_images < len(labels),
        fingerprint=_fingerprint(x, y, positions),
        note=matched.note if matched else "",
    )
    where = [torch.searchsorted(positions, each) for each in chosen]
    return Selection(x, y, positions, pgd=where[0], autoattack=where[1], source=source)


def _open(data: Data, net: nn.Module) -> tuple[Dataset[Any], str, str, Matched | None]:
    """The data set, its name and its split, and where its classes are among the model's, if both have names."""
    if isinstance(data, DataConfig):
        size = _input_size(net, data)
        found = load(replace(data, in_chans=size[0]), input_size=size, splits=("test",))
        test = found.test
        assert test is not None
        return test, test.name, test.split, match_labels(found.class_names, label_names(net))
    if isinstance(data, Images):
        return data, data.name, data.split, None
    name = "tensors" if isinstance(data, tuple) else type(data).__name__
    if isinstance(data, DataLoader):
        name, data = type(data.dataset).__name__, _drained(data)
    if isinstance(data, tuple):
        x, y = data
        if len(x) != len(y) or y.ndim != 1 or y.is_floating_point():
            raise ValueError(f"labels are {y.dtype} of shape {tuple(y.shape)}, wanted {len(x)} integers, one an image")
        return TensorDataset(x.detach().cpu(), y.detach().cpu().long()), name, "", None
    return data, name, "", None


def label_names(net: nn.Module) -> list[str] | None:
    """The names of the model's classes, where its configuration has them."""
    cfg: Any = net.model.pretrained_cfg if isinstance(net, InPixels) else None
    return list(cfg["label_names"]) if cfg and cfg.get("label_names") else None


def _drained(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """All images and labels of a loader in its order, which must be the same each time."""
    if isinstance(loader.sampler, RandomSampler):
        raise ValueError("the loader shuffles, so no two evaluations see the same order: give shuffle=False")
    batches = list(loader)
    if not batches or not all(isinstance(batch, list | tuple) and len(batch) == 2 for batch in batches):
        kind = type(batches[0]).__name__ if batches else "nothing"
        raise ValueError(f"the loader gives {kind}, wanted pairs (images NxCxHxW, labels N): give it a collate_fn")
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def _input_size(net: nn.Module, data: DataConfig) -> tuple[int, int, int]:
    """C, H, W that the model takes. Its channels are its own, whatever the data say: evaluation cannot change them."""
    if isinstance(net, InPixels):
        cfg: Any = net.model.pretrained_cfg
        height, width = cfg["input_size"][1:]
        return net.mean.shape[1], height, width
    if data.image_size is None:
        raise ValueError(f"{type(net).__name__} does not say which image size it takes: give data.image_size")
    return data.in_chans, data.image_size, data.image_size


def _labels(dataset: Dataset[Any]) -> Tensor:
    """All labels, N, without loading an image where the data set allows it."""
    labels = dataset.tensors[1] if isinstance(dataset, TensorDataset) else getattr(dataset, "labels", None)
    if labels is None:
        labels = [int(dataset[index][1]) for index in range(len(dataset))]  # type: ignore[arg-type]  # map-style
    return torch.as_tensor(labels).long().cpu()


def _in_shard(size: int, shard: Iterable[int] | None) -> Tensor:
    """size bool."""
    if shard is None:
        return torch.ones(size, dtype=torch.bool)
    indices = torch.tensor(list(shard), dtype=torch.long)
    if len(indices) and (indices.min() < 0 or indices.max() >= size):
        raise ValueError(f"indices span {indices.min()} to {indices.max()}, the data set has 0 to {size - 1}")
    return torch.zeros(size, dtype=torch.bool).index_fill_(0, indices, True)


def _choose(labels: Tensor, number: int | None, seed: int, mine: Tensor) -> Tensor:
    """Ascending positions of a stratified subset of `number` images, less those that are not `mine`."""
    everything = number is None or number >= len(labels)
    chosen = torch.arange(len(labels)) if everything else subset(labels, number, seed)  # type: ignore[arg-type]
    return chosen[mine[chosen]]


def _fingerprint(x: Tensor, y: Tensor, positions: Tensor) -> str:
    """Sum over the images of a 128-bit hash of position, label and pixels."""
    total = f"{0:032x}"
    for image, label, position in zip(x, y.tolist(), positions.tolist(), strict=True):
        content = f"{position} {label} ".encode() + image.contiguous().numpy().tobytes()
        total = add_fingerprints(total, hashlib.blake2b(content, digest_size=16).hexdigest())
    return total
