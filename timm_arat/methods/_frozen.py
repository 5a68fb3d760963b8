"""A network beside the one that is trained."""

from typing import Any

import torch
from torch import nn


class Frozen:
    """A network that a method only uses, in eval mode and without gradients: nobody's submodule, shared by copies.

    Its weights are in no state dict, average or export, and it is no parameter of the optimizer.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def __deepcopy__(self, memo: Any) -> "Frozen":
        return self


def check_classes(model: nn.Module, teacher: nn.Module) -> None:
    """ValueError unless both have as many classes, where both are timm's and say so."""
    mine, theirs = (getattr(each, "num_classes", None) for each in (model, teacher))
    if mine is not None and theirs is not None and mine != theirs:
        raise ValueError(
            f"the teacher has {theirs} classes and the model {mine}: give the teacher of the same data "
            "(timm.create_model(..., num_classes=))"
        )
