"""Choosing the branch of a split model, for the length of a `with`."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from torch import nn

from ._replay import bound_checkpoints
from ._split import BRANCHES, Branch, SplitNorm
from ._walk import check_split_norm, is_split, split_norms

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def norm_branch(model: Model, branch: Branch) -> Iterator[Model]:
    """Runs the split norms of `model` as `branch` inside the `with`, in train and in eval mode, then as before.

    branch: 'main', 'aux', or 'both': the first half of dim 0 through main, the second through aux.
    Nests, and restores on errors. A forward with gradient checkpointing must run inside; its backward may run outside.
    Raises ValueError when the model has no split norm or when other code has broken the split (`check_split_norm`).
    """
    if branch not in BRANCHES:
        raise ValueError(f"branch={branch!r} is not one of {', '.join(map(repr, BRANCHES))}")
    check_split_norm(model)
    norms = [norm for _, norm in split_norms(model)]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no split norm: call convert_split_norm(model) first")
    with _switched(norms, branch), bound_checkpoints(lambda: _switched(norms, branch)):
        yield model


def branch_if_split(model: Model, branch: Branch) -> AbstractContextManager[Model]:
    """`norm_branch`; a model without split norms has one way only, and is left as it is."""
    return norm_branch(model, branch) if is_split(model) else nullcontext(model)


@contextmanager
def _switched(norms: Sequence[SplitNorm], branch: Branch) -> Iterator[None]:
    # By module: a deepcopy (an EMA) has modules, and so a mode, of its own.
    before = [norm.branch for norm in norms]
    try:
        for norm in norms:
            norm.branch = branch
        yield
    finally:
        for norm, branch_before in zip(norms, before, strict=True):
            norm.branch = branch_before
