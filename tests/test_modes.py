"""Modes come back, and what a model cached in one of them does not outlive it."""

import pytest
import timm
import torch
from torch import nn

from timm_arat.modes import evaluating, keep_modes


@pytest.fixture
def net():
    """Train mode outside, eval mode in the middle, train mode inside."""
    net = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), nn.Linear(2, 2)).train()
    net[0].eval()
    net[0][1].train()
    return net


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


@pytest.mark.parametrize("change", [evaluating, keep_modes])
def test_every_module_gets_its_own_mode_back_after_an_error_too(net, change):
    before = modes(net)
    with change(net):
        net.eval()
    assert modes(net) == before
    with pytest.raises(KeyError), change(net):
        net.train()
        raise KeyError
    assert modes(net) == before


def test_everything_is_in_eval_mode_inside(net):
    with evaluating(net):
        assert not any(modes(net))


def test_attention_biases_of_older_weights_are_used_neither_inside_nor_afterwards():
    torch.manual_seed(0)
    model, x = timm.create_model("levit_128s", num_classes=3, img_size=64).eval(), torch.rand(2, 3, 64, 64)

    def change() -> None:
        for name, parameter in model.named_parameters():
            if "attention_biases" in name:
                parameter.normal_()

    def fresh() -> torch.Tensor:
        """The logits without a cache."""
        return model.train().eval()(x)

    with torch.no_grad():
        old = fresh()  # caches
        change()
        assert torch.equal(model(x), old)  # what this test is about: the cache is used in spite of the change
        with evaluating(model):
            inside = model(x)
        assert torch.equal(inside, fresh()) and not torch.equal(inside, old)
        with evaluating(model):
            model(x)
            change()
        assert torch.equal(model(x), fresh())
