"""What labels mean: they are read with the names of their classes, and carried from one list of names to another."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SHOWN = 5  # names of a class list in a message


class Matched(NamedTuple):
    """Where the classes of some data are among another list of classes.

    to_other: K, long: `to_other[label]` is the class in the other list.
    note: What a person should be told, or nothing.
    """

    to_other: Tensor
    note: str = ""


def match_labels(class_names: Sequence[str], label_names: Sequence[str] | None) -> Matched:
    """Find the classes of a data set (K `class_names`) among those of a model (`label_names` of its config.json).

    Classes go by name, so that another order, or a split without some of the model's classes, keeps its meaning. They
    go by position, with a note that says so, where the names are the numbers 0 ... K - 1 that timm_arat writes for
    a data set without names, or where the model has none.

    Raises:
        ValueError: the data have a class that the model has not, or a name stands for two classes.
    """
    identity = torch.arange(len(class_names))
    if not label_names:
        return Matched(identity, "the model does not name its classes, so labels are matched by position")
    if list(class_names) == list(label_names):
        return Matched(identity)
    for names, whose in ((class_names, "data"), (label_names, "model")):
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            raise ValueError(
                f"several classes of the {whose} have one name, {shortened(twice)}, so labels cannot be matched by "
                "name: give each class a name of its own"
            )
    missing = [name for name in class_names if name not in set(label_names)]
    if not missing:
        place = {name: index for index, name in enumerate(label_names)}
        return Matched(torch.tensor([place[name] for name in class_names], dtype=torch.long))
    fits = {True: len(class_names) <= len(label_names), False: len(class_names) == len(label_names)}
    if (is_numbered(class_names) or is_numbered(label_names)) and fits[is_numbered(class_names)]:
        unnamed = "data" if is_numbered(class_names) else "model"
        return Matched(
            identity, f"the classes of the {unnamed} have numbers for names, so labels are matched by position"
        )
    raise ValueError(
        f"the data have {len(missing)} classes that the model has not, {shortened(missing)}; the data's classes are "
        f"{shortened(class_names)}, the model's {shortened(label_names)}: evaluate on images of the model's classes, "
        "rename the classes of the data, or correct label_names in the model's config.json"
    )


def is_numbered(names: Sequence[str]) -> bool:
    """Whether `names` are 0 ... K - 1, as they are made up where a reader knows none."""
    return list(names) == [str(index) for index in range(len(names))]


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted as timm sorts class folders: numbers by their value, letters without regard to case."""
    from timm.utils.misc import natural_key

    return sorted(names, key=lambda name: (natural_key(name), name))


def shortened(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    some = ", ".join(map(repr, names[:_SHOWN]))
    return some if len(names) <= _SHOWN else f"{some}, ... ({len(names)} in all)"


def read_labels(dataset: Any, where: str) -> tuple[Tensor, tuple[str, ...], bool]:
    """The N labels of a data set of `create_dataset`, K names, and whether it has them: made up they are numbers.

    Labels that are strings are numbered in the order of their names. An image without a label has -1.

    Raises:
        ValueError: a label is neither a whole number nor a string, or there are no images; it says `where`.
    """
    raw = list(_targets(dataset))
    if not raw:
        raise ValueError(f"{where}: no images")
    if any(isinstance(label, str) for label in raw):
        return _named(raw, where)
    labels = torch.tensor([-1 if label is None else _whole(label, where) for label in raw])
    holder = getattr(dataset, "reader", dataset)
    by_name = getattr(holder, "class_to_idx", None) or getattr(holder, "class_name_to_idx", None)
    if by_name:
        return labels, tuple(name for name, _ in sorted(by_name.items(), key=lambda item: item[1])), True
    return labels, tuple(map(str, range(int(labels.max()) + 1))), False


def _targets(dataset: Any) -> Iterable[Any]:
    """Every label, without decoding an image where the data set allows it."""
    holder = getattr(dataset, "reader", dataset)
    if hasattr(holder, "label_key"):
        return list(holder.dataset[holder.label_key])
    targets = getattr(holder, "targets", None)
    if targets is not None and len(targets) == len(dataset) and torch.as_tensor(targets).dim() == 1:
        return torch.as_tensor(targets).tolist()
    if hasattr(holder, "samples"):
        return (label for _, label in holder.samples)
    return (dataset[index][1] for index in range(len(dataset)))


def _named(raw: Sequence[Any], where: str) -> tuple[Tensor, tuple[str, ...], bool]:
    if odd := [label for label in raw if not isinstance(label, str | None)]:
        raise ValueError(f"{where}: labels are strings and others, {odd[0]!r} for one; wanted one kind")
    names = in_order({label for label in raw if label is not None})
    place = {name: index for index, name in enumerate(names)}
    return torch.tensor([-1 if label is None else place[label] for label in raw]), tuple(names), True


def _whole(label: Any, where: str) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: a label is not one class index: {error}") from error
    if number != label:
        raise ValueError(f"{where}: a label is {label!r}, wanted a whole number, the index of its class")
    return number
