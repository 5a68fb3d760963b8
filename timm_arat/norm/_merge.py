"""Split model -> plain model."""

from typing import Literal, TypeVar

import torch
from torch import nn

from ._walk import RECORD, check_split_norm, split_norms

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def merge_split_norm(model: Model, *, branch: Literal["main", "aux"] = "main", mix: float = 0.0) -> Model:
    """Gives the norms of `model` their original classes and keys back, in place; returns `model`.

    branch: the branch that stays. With mix=0 the logits are bit-identical to its logits.
    mix: share of the other branch in [0, 1]; affine parameters and statistics are interpolated linearly, a dial
        between robust and clean accuracy.
    Raises ValueError when the model has no split norm or when other code has broken the split.
    """
    if branch not in ("main", "aux"):
        raise ValueError(f"branch={branch!r} is not 'main' or 'aux'")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix={mix} is not in [0, 1]: it is the share of the other branch")
    check_split_norm(model)
    norms = [norm for _, norm in split_norms(model)]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no split norm: there is nothing to merge")
    for norm in norms:
        for name, aux in norm.aux_bn[0].state_dict().items():
            main = getattr(norm, name)
            kept, other = (main, aux) if branch == "main" else (aux, main)
            # num_batches_tracked is a count: it stays with its branch.
            main.copy_(kept.lerp(other, mix) if mix and kept.is_floating_point() else kept)
        del norm.aux_bn, norm.branch, norm.share
        plain: nn.Module = norm
        plain.__class__ = norm.original
    for module in model.modules():
        module.__dict__.pop(RECORD, None)
    return model
