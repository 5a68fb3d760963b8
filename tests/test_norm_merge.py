"""A merged model is a plain timm model."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from helpers_norm import shift_aux
from timm.utils import reparameterize_model

from timm_arat.norm import batch_norms, convert_split_norm, is_split, merge_split_norm, norm_branch, split_norms


def split_model(name: str = "test_resnet", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    model = convert_split_norm(timm.create_model(name, num_classes=5, **kwargs)).eval()
    shift_aux(model)
    return model


@pytest.mark.parametrize("branch", ["main", "aux"])
def test_merge_keeps_the_branch_to_the_bit(branch: Any) -> None:
    plain = timm.create_model("test_resnet", num_classes=5)
    model = split_model()
    x = torch.rand(4, 3, 32, 32)
    with norm_branch(model, branch):
        wanted = model(x)
    weight = model.bn1.weight
    assert merge_split_norm(model, branch=branch) is model and not is_split(model)
    assert torch.equal(model(x), wanted)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [set(vars(m)) for m in model.modules()] == [set(vars(m)) for m in plain.modules()]
    assert model.bn1.weight is weight
    assert b"timm_arat" not in pickle.dumps(model), "a plain model unpickles where timm_arat is not installed"


def test_mix_interpolates_parameters_and_statistics() -> None:
    model = split_model()
    quarter = merge_split_norm(copy.deepcopy(model), mix=0.25)
    mirrored = merge_split_norm(copy.deepcopy(model), branch="aux", mix=0.75)
    for (_, split), (_, norm), (_, other) in zip(
        split_norms(model), batch_norms(quarter), batch_norms(mirrored), strict=True
    ):
        aux = split.aux_bn[0]
        for name in ("weight", "bias", "running_mean", "running_var"):
            wanted = 0.75 * getattr(split, name) + 0.25 * getattr(aux, name)
            assert torch.allclose(getattr(norm, name), wanted, atol=1e-6)
            assert torch.allclose(getattr(other, name), wanted, atol=1e-6)


def test_mix_of_one_is_the_other_branch() -> None:
    model = split_model()
    wanted = merge_split_norm(copy.deepcopy(model), branch="aux").state_dict()
    got = merge_split_norm(model, mix=1.0).state_dict()
    assert all(torch.equal(got[key], value) for key, value in wanted.items())


def test_bad_merges_are_refused() -> None:
    with pytest.raises(ValueError, match="mix=-0.1"):
        merge_split_norm(split_model(), mix=-0.1)
    with pytest.raises(ValueError, match="branch='both'"):
        merge_split_norm(split_model(), branch="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_split_norm(merge_split_norm(split_model()))


@pytest.mark.parametrize("name", ["fastvit_t8", "repvit_m0_9", "repghostnet_050"])
@pytest.mark.parametrize("branch", ["main", "aux"])
def test_merged_models_reparameterize(name: str, branch: Any) -> None:
    model = split_model(name)
    x = torch.rand(2, 3, 64, 64)
    merged = merge_split_norm(model, branch=branch)
    with torch.no_grad():
        wanted = merged(x)
        fused = reparameterize_model(merged)(x)
    assert torch.allclose(fused, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_reparameterizing_a_split_model_is_noticed() -> None:
    fused = reparameterize_model(split_model("repvit_m0_9"))
    with pytest.raises(ValueError, match="reparameterize_model"), norm_branch(fused, "aux"):
        pass
