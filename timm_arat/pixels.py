"""Images stay in [0, 1]; normalisation is part of the network."""

import torch
from torch import Tensor, nn


class InPixels(nn.Module):
    """A timm model that takes NCHW images in [0, 1] and normalises them itself; see `in_pixels`."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        weight = next(model.parameters(), torch.empty(0))
        # Constants of the model, not weights: they are in its pretrained_cfg, so not in the state dict.
        self.register_buffer("mean", weight.new_tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", weight.new_tensor(std).view(1, -1, 1, 1), persistent=False)
        self.is_identity = set(mean) == {0.0} and set(std) == {1.0}

    def normalize(self, x: Tensor) -> Tensor:
        """Images in [0, 1] to the wrapped model's own input range; NxCxHxW to NxCxHxW."""
        return x if self.is_identity else (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.normalize(x))


def in_pixels(model: nn.Module) -> InPixels:
    """Wrap a timm model so that it takes NCHW images in [0, 1]; mean and std come from its `pretrained_cfg`.

    Attacks, methods and evaluation share this wrapper, so eps always means pixels of [0, 1] (a wrong normalisation
    halves robust accuracy without an error: MadryLab/robustness issue 123). The weights are shared, not copied; a
    wrapped model is returned as it is.

    Raises:
        ValueError: the model has no `pretrained_cfg` with a mean and std, or they do not fit its input channels.
    """
    if isinstance(model, InPixels):
        return model
    cfg = getattr(model, "pretrained_cfg", None) or {}
    mean, std = cfg.get("mean"), cfg.get("std")
    if mean is None or std is None:
        raise ValueError(
            f"{type(model).__name__} has no pretrained_cfg with mean and std, so the range of its input is unknown: "
            "build it with timm.create_model, or set model.pretrained_cfg = {'mean': (0, 0, 0), 'std': (1, 1, 1)}"
        )
    channels = getattr(model, "in_chans", None) or _input_channels(model)
    if channels is not None and len(mean) != channels:
        # timm repeats or sums the stem's weights for other channel counts; a constant mean carries over, others do not.
        if len(set(mean)) > 1 or len(set(std)) > 1:
            raise ValueError(
                f"pretrained_cfg has mean {tuple(mean)} for {len(mean)} channels, the model takes {channels}: pass "
                f"pretrained_cfg_overlay=dict(mean=..., std=...) with {channels} values to timm.create_model"
            )
        mean, std = (mean[0],) * channels, (std[0],) * channels
    return InPixels(model, tuple(map(float, mean)), tuple(map(float, std)))


def _input_channels(model: nn.Module) -> int | None:
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
