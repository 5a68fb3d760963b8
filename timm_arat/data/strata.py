"""Choosing some of the images, fairly and repeatably."""

import torch
from torch import Tensor


def subset(labels: Tensor, n: int, seed: int) -> Tensor:
    """Sorted indices of `n` images, drawn at random in each class in proportion to its size (largest remainder).

    Depends on `labels` (N, integers), `n` in 0 ... N and `seed` only; draws nothing from the global generator.
    """
    if not 0 <= n <= len(labels):
        raise ValueError(f"cannot choose {n} of {len(labels)} images; choose at most {len(labels)}")
    generator = torch.Generator().manual_seed(seed)
    classes, counts = torch.unique(labels, return_counts=True)
    quotas = counts.double() * n / max(len(labels), 1)
    taken = quotas.long()
    # A random tie-break: all classes of a balanced set have the same remainder.
    ties = torch.rand(len(classes), generator=generator, dtype=torch.float64) * 1e-6
    taken[(quotas - taken + ties).argsort(descending=True)[: n - int(taken.sum())]] += 1
    chosen = []
    for label, count in zip(classes, taken.tolist(), strict=True):
        members = (labels == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values if chosen else torch.empty(0, dtype=torch.long)
