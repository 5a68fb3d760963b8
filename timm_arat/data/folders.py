"""Folders and .tar files of images: which files are read, which class each is of, and what was left out."""

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from timm_arat.data.decode import extensions
from timm_arat.data.labels import in_order, shortened

Parts = tuple[str, ...]  # of a path below the split's folder


@contextmanager
def all_extensions() -> Iterator[None]:
    """Inside, timm's readers of folders and .tar files take every image that Pillow opens, not PNG and JPEG alone."""
    from timm.data.readers import get_img_extensions, set_img_extensions

    before = get_img_extensions()
    set_img_extensions(sorted(extensions()))
    try:
        yield
    finally:
        set_img_extensions(before)


def is_image(path: str) -> bool:
    """Whether `path` (a file's, below its split) is an image by its ending, and neither it nor a folder is hidden."""
    return not _is_hidden(_parts(path)) and os.path.splitext(path)[1].lower() in extensions()


def label_by_folder(reader: Any, root: str) -> tuple[str, ...]:
    """Give the images of timm's `reader` of `root`, a folder or .tar file, their classes; returns notes for people.

    A class is a folder directly below `root`, with its images in it or in a folder of its own
    (train/CLASS/images/1.png), or with none at all. Where such a folder has several folders of images and no image of
    its own, it is a group, and the classes are the innermost folders, as in timm. Numbers in names sort as numbers.
    Hidden files and folders are left out.

    Raises:
        ValueError: two classes have one name, or no image lies in a folder.
    """
    in_tar = os.path.isfile(root)
    if in_tar and any(child is not None for _, _, child in reader.samples):
        return ()  # archives in the archive, whose names are the classes
    images = [sample[0].path if in_tar else os.path.relpath(sample[0], root) for sample in reader.samples]
    where = [_parts(path)[:-1] for path in images]
    kept = [index for index, path in enumerate(images) if where[index] and is_image(path)]
    if not kept:
        raise ValueError(f"{root} has no images in folders; wanted one folder a class, {root}/CLASS/IMAGE")
    files, empty = _listing(root, in_tar)
    name_of = _class_of({where[index] for index in kept}, root)
    names = tuple(in_order({name_of[where[index]] for index in kept} | _empty_classes(empty, name_of)))
    numbers = {name: number for number, name in enumerate(names)}
    if in_tar:
        reader.samples = reader.samples[kept]
        reader.targets = [numbers[name_of[where[index]]] for index in kept]
        reader.class_name_to_idx = numbers
    else:
        reader.samples = [(reader.samples[index][0], numbers[name_of[where[index]]]) for index in kept]
        reader.class_to_idx = numbers
    return _notes(files, set(map(_parts, (images[index] for index in kept))))


def left_out(root: str) -> tuple[str, ...]:
    """What to tell of the files below the folder `root` that are no images or lie outside its class folders."""
    files, _ = _listing(root, in_tar=False)
    return _notes(files, {parts for parts in files if len(parts) > 1 and is_image("/".join(parts))})


def _parts(path: str) -> Parts:
    return tuple(part for part in PurePosixPath(path.replace(os.sep, "/")).parts if part != ".")


def _is_hidden(parts: Parts) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)  # the latter, what macOS adds to a .zip


def _listing(root: str, in_tar: bool) -> tuple[list[Parts], list[Parts]]:
    """Every file below `root` that is not hidden, and every folder that holds nothing else."""
    if in_tar:
        with tarfile.open(root) as tar:
            entries = [(_parts(entry.name), entry.isdir()) for entry in tar]
        files = [parts for parts, is_folder in entries if not is_folder]
        above = {parts[:depth] for parts, _ in entries for depth in range(len(parts))}
        empty = [parts for parts, is_folder in entries if is_folder and parts not in above]
    else:
        files, empty = [], []
        for folder, folders, names in os.walk(root, followlinks=True):
            parts = _parts(os.path.relpath(folder, root))
            files += [(*parts, name) for name in names]
            if not folders and all(_is_hidden((name,)) for name in names):
                empty.append(parts)
    return [parts for parts in files if not _is_hidden(parts)], [
        parts for parts in empty if parts and not _is_hidden(parts)
    ]


def _class_of(folders: set[Parts], root: str) -> dict[Parts, str]:
    """The class of each of the `folders` that hold images."""
    below: dict[str, list[Parts]] = defaultdict(list)
    for parts in folders:
        below[parts[0]].append(parts)
    is_grouped = any(len(each) > 1 and (top,) not in each for top, each in below.items())
    if not is_grouped:
        return {parts: parts[0] for parts in folders}
    owner: dict[str, Parts] = {}
    for parts in sorted(folders):
        if (other := owner.setdefault(parts[-1], parts)) != parts:
            raise ValueError(
                f"{root}: the folders {'/'.join(other)} and {'/'.join(parts)} would be one class {parts[-1]!r}; keep "
                "each class in one folder directly below, or give them different names"
            )
    return {parts: parts[-1] for parts in folders}


def _empty_classes(empty: Sequence[Parts], name_of: dict[Parts, str]) -> set[str]:
    """The classes that have a folder and no image."""
    is_grouped = any(parts[0] != name for parts, name in name_of.items())
    return {parts[-1 if is_grouped else 0] for parts in empty}


def _notes(files: Sequence[Parts], read: set[Parts]) -> tuple[str, ...]:
    skipped = sorted(set(files) - read)
    if not skipped:
        return ()
    paths = ["/".join(parts) for parts in skipped]
    return (f"left out, being no image by its name or in no class's folder: {shortened(paths)}",)
