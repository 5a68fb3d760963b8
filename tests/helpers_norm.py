"""A float64 self-check of a split model, for architectures that nobody has tried."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from timm_arat.modes import keep_modes
from timm_arat.norm import norm_branch, split_norms

TOLERANCE = 1e-7  # relative, in float64: rounding stays below 1e-9, a mixed batch differs by more than 1e-3


def verify_split(model: nn.Module, x: Tensor) -> None:
    """Raises ValueError unless one 'both' pass over `x` equals a main and an aux pass over its halves.

    Guards models that fold time or windows ahead of the batch, where half of dim 0 is not half of the images, and
    models that mix images outside their norms (timm 1.0.31's csatv2 attends over the batch). Compares outputs and
    running statistics of a float64 copy whose aux branch is shifted, in eval mode and with batch statistics (dropout
    off). x: 2NxCxHxW with N >= 4: over two values a BatchNorm blows rounding up. The model is not changed.
    """
    if x.shape[0] % 2 or x.shape[0] < 8:
        raise ValueError(f"x has {x.shape[0]} images: an even number of at least 8 is wanted, 4 for each branch")
    with keep_modes(model):
        model.train()  # drops the biases that some models cache in eval mode: their graph cannot be copied
        shifted = copy.deepcopy(model).double()
    shift_aux(shifted)
    for batch_statistics in (False, True):
        error = joint_error(shifted, x.double(), batch_statistics)
        if not error <= TOLERANCE:
            raise ValueError(
                f"'both' does not equal two switched passes on {type(model).__name__}: outputs or statistics differ by "
                f"{error:.2g} (relative, {'batch' if batch_statistics else 'running'} statistics). Something "
                f"comes ahead of the batch in dim 0 of a norm, or a layer mixes images; if it is the former, run the "
                f"branches as two norm_branch passes"
            )


@torch.no_grad()
def shift_aux(model: nn.Module) -> None:
    """Moves aux away from main, in place, by a tenth of a unit: branches that are equal hide every confusion."""
    for _, norm in split_norms(model):
        for tensor in norm.aux_bn[0].state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.1).add_(0.1)


@torch.no_grad()
def joint_error(model: nn.Module, x: Tensor, batch_statistics: bool) -> float:
    """Largest relative difference, over outputs and buffers, between a 'both' pass and two switched ones.

    Leaves `model` in eval mode, its buffers as they were.
    """
    model.eval()
    for _, norm in split_norms(model):
        norm.training = norm.aux_bn[0].training = batch_statistics
    start = [buffer.clone() for buffer in model.buffers()]

    with norm_branch(model, "both"):
        y = list(_tensors(model(x)))
    joint = [*y, *(buffer.clone() for buffer in model.buffers())]
    _restore(model, start)

    x_main, x_aux = x.chunk(2)
    with norm_branch(model, "main"):
        y_main = list(_tensors(model(x_main)))
    with norm_branch(model, "aux"):
        y_aux = list(_tensors(model(x_aux)))
    outputs = [torch.cat(halves) for halves in zip(y_main, y_aux, strict=True)]
    switched = [*outputs, *(buffer.clone() for buffer in model.buffers())]
    _restore(model, start)
    model.eval()
    return max(_relative_error(got, wanted) for got, wanted in zip(joint, switched, strict=True))


def _restore(model: nn.Module, start: list[Tensor]) -> None:
    for buffer, value in zip(model.buffers(), start, strict=True):
        buffer.copy_(value)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    if not got.is_floating_point() or not got.numel():
        return float(not torch.equal(got, wanted))
    # A mean that is zero but for rounding has no relative error to speak of.
    error = (got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3)
    return float("inf") if error.isnan() else float(error)
