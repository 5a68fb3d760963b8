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
