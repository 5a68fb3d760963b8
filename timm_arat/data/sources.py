"""Where images come from: every data set of `timm.data.create_dataset` behind one face, its failures in plain words."""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed
from PIL import Image
from torch import Tensor

from timm_arat.data.decode import decode, header_size, to_mode
from timm_arat.data.folders import all_extensions, is_image, label_by_folder, left_out
from timm_arat.data.labels import read_labels
from timm_arat.names import nearest

# What `create_dataset` knows; it takes any other name for a folder, so a typo would read the wrong images.
_TORCH_HALVES = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
_TORCH = (*_TORCH_HALVES, "imagenet", "places365", "inaturalist", "inat", "image_folder", "folder")
_STREAMS = ("hfids", "tfds", "wds")
_TRAIN = ("train", "training")
_EVAL = ("val", "valid", "validation", "eval", "evaluation")
_STREAM_BYTES = 2**31


_FOLDERS = ("", "folder", "torch/folder", "torch/image_folder")


@dataclass(frozen=True)
class Source:
    """N images by index, each a PIL image or a CxHxW tensor (uint8, or float in [0, 1]), with N labels and K names.

    `is_named`: the names are the reader's, not made up from the labels. `notes`: what a person should be told.
    """

    images: Sequence[Any]
    labels: Tensor
    class_names: tuple[str, ...]
    is_named: bool = True
    notes: tuple[str, ...] = ()


def open_source(
    name: str, split: str, *, root: str | None = None, in_chans: int = 3, download: bool = False, **keys: str | None
) -> Source:
    """The data set `name` (digits, or as `create_dataset` takes it). ValueError or ImportError say what is wrong.

    `keys` are timm's `input_key` and `target_key`, for readers that have columns.
    """
    _check_name(name)
    if name == "digits":
        from timm_arat.data.digits import digits

        return digits(split, in_chans)
    kind, _, rest = name.partition("/")
    if kind == "torch" and root is None:
        raise ValueError(f"data set {name!r} needs the folder it lies in: give data.root")
    if kind == "torch" and rest in _TORCH_HALVES and split not in (*_TRAIN, *_EVAL, "test"):
        # timm takes any word but `train` for the second half.
        raise ValueError(f"data set {name!r} has no split {split!r}; it has train and test")
    if name in _FOLDERS:
        root = _split_root(root, split)
    if kind == "hfds" and rest.startswith((".", "/", "~")) and not os.path.isdir(rest):
        raise ValueError(f"data set {name!r}: there is no folder {rest!r} (seen from {os.getcwd()})")
    mode = "L" if in_chans == 1 else "RGB"
    options: dict[str, Any] = keys if kind in ("hfds", *_STREAMS) else {}
    if name in _FOLDERS and kind == "torch":
        options = dict(loader=partial(_load, mode=mode), is_valid_file=_is_image_file, allow_empty=True)
    dataset = _create("" if name == "folder" else name, split, root, download, mode, options)
    notes: tuple[str, ...] = ()
    if name in _FOLDERS:
        assert root is not None
        notes = left_out(root) if kind == "torch" else label_by_folder(dataset.reader, root)
    if kind == "hfds":
        _check_origin(name, rest, dataset.reader)
        _check_columns(name, dataset.reader)
    if kind in _STREAMS:
        dataset = _drained(dataset, name)
    labels, class_names, is_named = read_labels(dataset, f"data set {name or root!r}, split {split!r}")
    images = _Files(dataset.reader, mode) if hasattr(dataset, "reader") else _Pictures(dataset, mode)
    return Source(images, labels, class_names, is_named, notes)


def is_same_split(name: str, one: str, other: str) -> bool:
    """Whether two names of splits mean the same images of the data set `name`."""
    synonyms = [_TRAIN, _EVAL]
    if name.partition("/")[2] in _TORCH_HALVES:
        synonyms = [_TRAIN, (*_EVAL, "test")]  # timm takes any word but `train` for the second half
    has_synonyms = name in _FOLDERS or name.startswith("torch/")
    return one == other or has_synonyms and any(one in words and other in words for words in synonyms)


def _create(name: str, split: str, root: str | None, download: bool, mode: str, keys: dict[str, Any]) -> Any:
    from timm.data import create_dataset

    kind = name.partition("/")[0]
    try:
        with all_extensions() if kind == "" else nullcontext():
            return create_dataset(
                name, root=root, split=split, search_split=False, download=download, input_img_mode=mode, **keys
            )
    except ImportError as error:
        extra = "timm_arat[data]" if kind in ("hfds", "hfids") else str(error.name)
        raise ImportError(f"data set {name!r} needs {error.name}: pip install {extra}") from error
    except Exception as error:  # each reader behind timm fails in its own way, with ArrowInvalid, AssertionError
        way_out = ""
        if kind == "torch" and not download:
            way_out = f"; set data.download, or give the right data.root, which is now {_seen(root)}"
        rest = name.partition("/")[2]
        if kind == "hfds" and "/" not in rest:  # a published checkpoint's, whose publisher's folders are not named
            way_out = f"; if it is a folder, which is not in {os.getcwd()}, give its path: data.name=hfds/PATH/{rest}"
        message = str(error) or type(error).__name__
        raise ValueError(f"data set {name or root!r}, split {split!r}, cannot be read: {message}{way_out}") from error


def _seen(root: str | None) -> str:
    """The folder as it was given, and for a relative one from where: a run may be resumed from elsewhere."""
    return repr(root) if root is None or os.path.isabs(root) else f"{root!r} (seen from {os.getcwd()})"


def _check_name(name: str) -> None:
    kind, slash, rest = name.partition("/")
    known = ("digits", "folder", "hfds/NAME", "hfids/NAME", "tfds/NAME", "wds/NAME", *(f"torch/{n}" for n in _TORCH))
    if name in ("", "digits", "folder") or (kind in ("hfds", *_STREAMS) and rest):
        return
    if kind == "torch" and rest in _TORCH:
        return
    raise ValueError(f"unknown data set {name!r}; {nearest(name, known)}")


def _split_root(root: str | None, split: str) -> str:
    """The folder or .tar of `split` in `root`. timm would take `root` itself, and the splits in it for classes."""
    if root is None or not os.path.isdir(root):
        raise ValueError(
            f"data.root={_seen(root)} is no folder; wanted one that holds a folder (or .tar) for each split"
        )
    entries = {
        name.removesuffix(".tar"): os.path.join(root, name)
        for name in sorted(os.listdir(root))
        if name.endswith(".tar") or os.path.isdir(os.path.join(root, name))
    }
    synonyms = next((words for words in (_TRAIN, _EVAL) if split in words), ())
    for name in (split, *synonyms):
        if name in entries:
            return entries[name]
    raise ValueError(
        f"data.root={root!r} has no split {split!r}; it holds {', '.join(entries) or 'no folders'}: name the right "
        "ones by data.train_split and data.test_split"
    )


def _check_origin(name: str, rest: str, reader: Any) -> None:
    # Without a network `datasets` takes what it has in its cache under a name, also where that is of some folder that
    # was last read from elsewhere and was called so. It keeps the Hub's by their commit, which is longer than the hash
    # by which it keeps a folder's.
    kept = {os.path.basename(os.path.dirname(file["filename"])) for file in reader.dataset.cache_files}
    if not os.path.isdir(rest) and any(re.fullmatch("[0-9a-f]{16}", each) for each in kept):
        raise ValueError(
            f"data set {name!r}: there is no folder {rest!r} (seen from {os.getcwd()}), and what the cache of "
            "`datasets` has under that name is of a folder elsewhere: give its path, "
            f"data.name=hfds/PATH/{os.path.basename(rest)}"
        )


def _check_columns(name: str, reader: Any) -> None:
    # timm adds an empty column where there is none of that name.
    columns = reader.dataset.column_names
    empty = reader.image_key not in columns or (len(reader) and not reader.dataset[0][reader.image_key])
    for key, option, missing in (
        (reader.image_key, "input_key", empty),
        (reader.label_key, "target_key", reader.label_key not in columns),
    ):
        if missing:
            others = ", ".join(column for column in columns if column != key)
            raise ValueError(f"data set {name!r} has no column {key!r}: give data.{option}, one of {others}")


def _drained(dataset: Iterable[tuple[Image.Image, Any]], name: str) -> list[tuple[Image.Image, Any]]:
    """A stream read whole: the rest of timm_arat asks for images by index."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ValueError(f"data set {name!r} is a stream, which each process would read in part: use hfds/ or a folder")
    pairs, size = [], 0
    for image, label in dataset:
        pairs.append((image, label))
        size += image.width * image.height * len(image.getbands())
        if size > _STREAM_BYTES:
            raise ValueError(f"data set {name!r} is a stream of more than 2 GiB of pixels: use hfds/ or a folder")
    return pairs


class _Files(Sequence[Image.Image]):
    """The images of a timm reader. timm's own dataset replaces an image that it cannot read by the next one."""

    def __init__(self, reader: Any, mode: str):
        self.reader, self.mode = reader, mode

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: Any) -> Any:
        with self.reader[index][0] as file:
            return decode(file, self.mode, self._name(index))

    def size(self, index: int) -> tuple[int, int]:
        """H, W, by the header of the file."""
        with self.reader[index][0] as file:
            return header_size(file, self._name(index))

    def _name(self, index: int) -> str:
        return f"image {index} ({self.reader.filename(index)})"


class _Pictures(Sequence[Image.Image]):
    """The images of pairs (PIL image, label)."""

    def __init__(self, pairs: Any, mode: str):
        self.pairs, self.mode = pairs, mode

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        return to_mode(self.pairs[index][0], self.mode)


def _load(path: str, mode: str) -> Image.Image:
    with open(path, "rb") as file:
        return decode(file, mode, f"image {path}")


def _is_image_file(path: str) -> bool:
    return is_image(os.path.basename(path))
