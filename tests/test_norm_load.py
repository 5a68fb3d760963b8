"""Plain, split and timm's own checkpoints into a split model."""

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from helpers_norm import shift_aux
from timm.layers import convert_splitbn_model

from timm_arat.norm import convert_split_norm, load_split_state_dict, norm_branch


def plain(seed: int) -> Any:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=5).eval()


def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_plain_checkpoint_fills_both_branches() -> None:
    source, model = plain(0), convert_split_norm(plain(1))
    shift_aux(model)
    state = source.state_dict()
    keys = list(state)
    load_split_state_dict(model, state)
    assert list(state) == keys
    for branch in ("main", "aux"):
        with norm_branch(model, branch):
            assert torch.equal(model(images()), source(images()))


def test_our_checkpoint_comes_back() -> None:
    source, model = convert_split_norm(plain(0)), convert_split_norm(plain(1))
    shift_aux(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_split_state_dict(model, source.state_dict(), swap=False)
    with norm_branch(model, "both"), norm_branch(source, "both"):
        assert torch.equal(model(images()), source(images()))


def test_timm_split_checkpoint_warns_or_is_swapped() -> None:
    source: Any = convert_splitbn_model(plain(0)).eval()
    with torch.no_grad():
        source.bn1.aux_bn[0].weight.add_(1.0)
    model = convert_split_norm(plain(1))
    with pytest.warns(UserWarning, match="swap=True"):
        load_split_state_dict(model, source.state_dict())
    with norm_branch(model, "main"):
        assert torch.equal(model(images()), source(images()))
    load_split_state_dict(model, source.state_dict(), swap=True)
    with norm_branch(model, "aux"):
        assert torch.equal(model(images()), source(images()))
    assert torch.equal(model.bn1.weight, source.bn1.aux_bn[0].weight)


def spoiled(change: str) -> dict[str, Any]:
    state = dict(convert_split_norm(plain(0)).state_dict())
    if change == "partial":
        del state["layer1.0.bn1.aux_bn.0.bias"]
    elif change == "third branch":
        state["bn1.aux_bn.1.weight"] = state["bn1.weight"]
    elif change == "shape":
        state["fc.weight"] = state["fc.weight"][:3]
    else:
        state = {"state_dict": state}
    return state


@pytest.mark.parametrize("change", ["partial", "third branch", "shape", "nested"])
def test_what_does_not_fit_is_refused_before_anything_is_loaded(change: str) -> None:
    model = convert_split_norm(plain(1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="does not fit ResNet"):
        load_split_state_dict(model, spoiled(change), swap=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_old_checkpoints_without_batch_counts_load() -> None:
    model = convert_split_norm(plain(1))
    load_split_state_dict(model, {k: v for k, v in plain(0).state_dict().items() if "num_batches" not in k})


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="no aux_bn key"):
        load_split_state_dict(convert_split_norm(plain(1)), plain(0).state_dict(), swap=True)
    with pytest.raises(ValueError, match="call convert_split_norm"):
        load_split_state_dict(plain(1), plain(0).state_dict())


def test_attention_biases_cached_in_eval_mode_are_dropped() -> None:
    make = lambda: timm.create_model("levit_128s", num_classes=5, img_size=64).eval()  # noqa: E731
    source, model = make(), convert_split_norm(make())
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if "attention_biases" in name:
                parameter.normal_()
    x = torch.rand(2, 3, 64, 64)
    model(x)
    load_split_state_dict(model, source.state_dict())
    assert torch.equal(model(x), source(x)) and not model.training
