"""A mean with the number of values behind it and its 95 % interval."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Two-sided 95 % quantiles of Student's t by degrees of freedom, from 1; beyond them see `_quantile`.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """mean: of `n` values. interval_95: (low, high) of that mean, by Student's t; None for a single value."""

    mean: float
    n: int
    interval_95: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(values: Tensor | Sequence[float]) -> Estimate:
    """The mean of `values`, N independent measurements (one an image, or one a batch).

    Raises:
        ValueError: there is no value.
    """
    found = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    n = found.numel()
    if n == 0:
        raise ValueError("there is no value to take the mean of: measure at least one image or batch")
    mean = float(found.mean())
    if n == 1:
        return Estimate(mean, 1, None)
    half = _quantile(n - 1) * float(found.std()) / math.sqrt(n)
    return Estimate(mean, n, (mean - half, mean + half))


def _quantile(freedom: int) -> float:
    """Of Student's t; beyond the table by its expansion about the normal distribution's, right to three digits."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom
