"""What moves during training: features between epochs (Fig. 4a of the ARAT paper), statistics within one (Fig. 14)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..norm import batch_norms, split_norms
from .estimate import Estimate, estimate


def drift(now: Tensor, before: Tensor) -> Estimate:
    """The mean of 1 - cos(z_i, z_i before) over the same N images in the same order; features NxC. 0: nothing moved."""
    if now.shape != before.shape:
        raise ValueError(f"features {tuple(now.shape)} are not of the images and layer of {tuple(before.shape)}")
    return estimate(1 - F.cosine_similarity(now.double(), before.double(), dim=1))


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running mean and variance of every BatchNorm, by 'branch/layer/running_mean'; main alone if unsplit."""
    norms: dict[str, nn.Module] = {f"main/{name}": norm for name, norm in batch_norms(model)}
    for name, norm in split_norms(model):
        norms[f"aux/{name}"] = norm.aux_bn[0]
    return {
        f"{name}/{statistic}": value
        for name, norm in norms.items()
        for statistic in ("running_mean", "running_var")
        if isinstance(value := getattr(norm, statistic, None), Tensor)
    }


class Spread:
    """The variance of running statistics over the steps of an epoch, by channel; a running sum, no history.

    Official code: a clone of every statistic at every step, whose variance is taken afterwards. This is Welford's
    recurrence for the same number, over all statistics as one vector.

    Attributes:
        count: Steps taken in.
        mean, squares: Their mean and the sum of squared deviations from it, one entry for each channel of each norm.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    @torch.no_grad()
    def take(self, statistics: dict[str, Tensor]) -> None:
        """Take in the statistics of one step, as `running_statistics` gives them."""
        if not statistics:
            return
        now = torch.cat([each.float().flatten() for each in statistics.values()])
        if self.mean is None or self.squares is None:
            self.mean, self.squares = torch.zeros_like(now), torch.zeros_like(now)
        self.count += 1
        delta = now - self.mean
        self.mean += delta / self.count
        self.squares += delta * (now - self.mean)

    def variances(self, statistics: dict[str, Tensor]) -> dict[str, float]:
        """The unbiased variance over the steps, averaged over channels, by name; empty before two steps."""
        if self.count < 2 or self.squares is None:
            return {}
        parts = (self.squares / (self.count - 1)).split([each.numel() for each in statistics.values()])
        return dict(zip(statistics, torch.stack([part.mean() for part in parts]).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.count = state["count"]
        for name in ("mean", "squares"):
            setattr(self, name, None if state[name] is None else state[name].to(device))
