"""Split BatchNorms whose branches share their affine parameters, or their statistics: the halves of what a split does.

Both are ablations (cf. Zhang et al., arXiv:2403.19150, who ask which half matters). What is shared is main's alone, and
`aux_bn` holds only what is apart.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Share = Literal["affine", "statistics"]
SHARES: tuple[str, ...] = get_args(Share)
NAMES: dict[str, tuple[str, ...]] = {
    "affine": ("weight", "bias"),
    "statistics": ("running_mean", "running_var", "num_batches_tracked"),
}


def check_shareable(module: nn.Module, name: str) -> None:
    """ValueError unless the two halves of the norm can be told apart here."""
    if not isinstance(module, _BatchNorm) or isinstance(module, nn.SyncBatchNorm):
        raise ValueError(
            f"{name} is a {type(module).__name__}, and only branches of a plain BatchNorm can share one half: leave "
            "share out, or sync_norm off"
        )


def drop_shared(aux: nn.Module, share: Share) -> None:
    """Leave to `aux`, a copy of a BatchNorm, only what is apart."""
    for name in NAMES[share]:
        setattr(aux, name, None)
    if share == "statistics":
        aux.track_running_stats = False  # type: ignore[assignment]  # a Module's attributes may be anything


def forward(norm: _BatchNorm, aux: _BatchNorm, share: Share, branch: str, x: Tensor) -> Tensor:
    """As the split norm's, before act and drop; x: NxCx...

    Shared statistics are those of both halves together while training, so that a pass of both is one normalisation.
    """
    if branch != "both":  # one normalisation, bit for bit torch's own
        one = norm if branch == "main" else aux
        statistics, affine = (norm, one) if share == "statistics" else (one, norm)
        return _normalised(statistics, x, affine.weight, affine.bias)
    if share == "statistics":
        halves = _normalised(norm, x, None, None).chunk(2)
        return torch.cat([_scaled(half, each) for half, each in zip(halves, (norm, aux), strict=True)])
    pairs = zip(x.chunk(2), (norm, aux), strict=True)
    return torch.cat([_normalised(each, half, norm.weight, norm.bias) for half, each in pairs])


def _scaled(y: Tensor, norm: _BatchNorm) -> Tensor:
    if norm.weight is None:
        return y
    shape = (1, -1, *(1,) * (y.ndim - 2))
    return y * norm.weight.view(shape).to(y.dtype) + norm.bias.view(shape).to(y.dtype)


def _normalised(norm: _BatchNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """torch's BatchNorm by the statistics of `norm`, which it updates in training, with these affine parameters."""
    factor = 0.0 if norm.momentum is None else norm.momentum
    moves = norm.training and norm.track_running_stats  # an attack switches it off, see `attacks.PGD`
    if moves and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        factor = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else factor
    of_batch = norm.training or norm.running_mean is None
    known = norm.running_mean, norm.running_var
    mean, var = known if moves or not norm.training else (None, None)
    return F.batch_norm(x, mean, var, weight, bias, of_batch, factor, norm.eps)
