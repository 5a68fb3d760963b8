"""A backbone's norms split as a method's setting `split_norm` says."""

from typing import Literal

from torch import nn

from ..norm import Share, convert_split_norm

SplitWhich = Literal["batch", "all", "none", "affine", "statistics"]


def split(model: nn.Module, which: SplitWhich) -> None:
    """Split the norms of `model` in place: BatchNorms ('batch'), every norm with parameters ('all'), or none.

    'affine' splits the affine parameters of BatchNorms and leaves the statistics shared, 'statistics' the reverse.

    Raises:
        ValueError: the model has no norm of the kind, with the settings that would do.
    """
    if which == "none":
        return
    try:
        shared: Share | None = {"affine": "statistics", "statistics": "affine"}.get(which)  # type: ignore[assignment]
        convert_split_norm(model, norms="all" if which == "all" else None, share=shared)
    except ValueError as error:
        raise ValueError(
            f"split_norm={which!r}: {error}; in a recipe method.split_norm, all, or none where the method has it"
        ) from error
