"""Run a model for an attack and leave no trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modes import keep_modes

NormMode = Literal["eval", "batch", "train"]


@contextmanager
def quiet(model: nn.Module, norm_mode: NormMode) -> Iterator[None]:
    """Put `model` into the mode of an attack; put every module's own mode and every requires_grad back afterwards.

    Parameters are frozen inside: the attack needs no weight gradients, which saves a third of its backward pass and
    their memory. See `PGD` for `norm_mode`. A norm that is in eval mode while the model trains is frozen: it normalises
    by its running statistics in `batch` mode, too.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    tracked = [(m, m.track_running_stats) for m in norms]
    frozen = {m for m in norms if model.training and not m.training}
    with keep_modes(model):
        try:
            for p in trainable:
                p.requires_grad_(False)
            model.train()  # by way of train mode: drops attention biases cached from older weights, see keep_modes
            if norm_mode != "train":
                model.eval()
            if norm_mode == "batch":
                for norm in (m for m in norms if m not in frozen):
                    norm.training = True  # itself alone: the drop inside timm's BatchNormAct2d stays in eval mode
                    norm.track_running_stats = False  # torch: batch statistics, and the running ones are not touched
            yield
        finally:
            for norm, value in tracked:
                norm.track_running_stats = value
            for p in trainable:
                p.requires_grad_(True)


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients on, whatever the caller switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
