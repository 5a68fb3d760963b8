"""The networks, image sizes and batches that are measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn

from timm_arat.names import nearest

CLASSES = 10


@dataclass(frozen=True)
class Shape:
    """One row of every table: a backbone, the side of its images, and a batch that fits a CPU."""

    model: str
    size: int
    batch: int
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0) -> nn.Module:
        """The backbone, with the same weights at every call."""
        torch.manual_seed(seed)
        return timm.create_model(self.model, num_classes=CLASSES, **self.kwargs)

    def images(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """A batch: NxCxHxW in [0, 1], contiguous, and classes N."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(self.batch, 3, self.size, self.size, generator=generator)
        return x, torch.randint(CLASSES, (self.batch,), generator=generator)


SHAPES = {
    "resnet18_cifar": Shape("resnet18_cifar", 32, 16),
    "resnet20_cifar": Shape("resnet20_cifar", 32, 128),
    "wide_resnet16_4": Shape("wide_resnet34_10_cifar", 32, 16, {"layers": (2, 2, 2), "channels": (64, 128, 256)}),
    "resnet50_64": Shape("resnet50", 64, 4),
    "resnet50_224": Shape("resnet50", 224, 4),
    "efficientnet_b0": Shape("efficientnet_b0", 64, 16),
    "convnext_femto": Shape("convnext_femto", 64, 16),
}
# For a rehearsal of every line in seconds; the numbers mean nothing.
_TINY = {"layers": (1, 1), "channels": (8, 8)}
QUICK = {
    "resnet18_cifar": Shape("resnet18_cifar", 8, 4, _TINY),
    "resnet20_cifar": Shape("resnet20_cifar", 8, 4, _TINY),
}


def choose(names: Sequence[str], quick: bool) -> dict[str, Shape]:
    """The shapes called `names`; all if none are given. ValueError for a name that is not known."""
    known = QUICK if quick else SHAPES
    for name in names:
        if name not in known:
            raise ValueError(f"shapes: no shape called {name!r}; {nearest(name, known)}")
    return {name: shape for name, shape in known.items() if not names or name in names}
