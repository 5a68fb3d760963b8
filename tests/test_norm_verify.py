"""The self-check passes where halves of dim 0 are halves of the batch, and only there."""

import copy
from typing import Any

import pytest
import timm
import torch
from helpers_norm import verify_split
from torch import Tensor, nn

from timm_arat.norm import convert_split_norm


class Video(nn.Module):
    """NxTxD; folds time into dim 0, ahead of the batch or behind it."""

    def __init__(self, time_first: bool) -> None:
        super().__init__()
        self.time_first, self.bn = time_first, nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.time_first:
            return self.bn(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], -1)).transpose(0, 1)
        return self.bn(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1]))


def test_folding_ahead_of_the_batch_is_caught() -> None:
    x = torch.randn(8, 3, 4)
    verify_split(convert_split_norm(Video(time_first=False)), x)
    with pytest.raises(ValueError, match="ahead of the batch in dim 0"):
        verify_split(convert_split_norm(Video(time_first=True)), x)


@pytest.mark.parametrize("name", ["test_resnet", "levit_128s"])
def test_the_model_is_not_changed(name: str) -> None:
    size = {"img_size": 64} if name.startswith("levit") else {}
    model: Any = convert_split_norm(timm.create_model(name, num_classes=5, **size)).eval()  # type: ignore[arg-type]
    model.get_submodule("stem" if size else "layer1").train()
    x = torch.rand(8, 3, 64, 64)
    model(x)  # levit now caches biases with a graph, which cannot be copied
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    verify_split(model, x)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("n", [6, 9])
def test_too_few_images_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="even number of at least 8"):
        verify_split(convert_split_norm(Video(False)), torch.randn(n, 3, 4))
