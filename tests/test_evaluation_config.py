"""The settings of an evaluation: what is refused before anything runs, and where the threat comes from."""

import subprocess
import sys

import pytest

from timm_arat.evaluation import EvaluationConfig, evaluate


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"norm": "linf", "eps": 5}, "8/255 rather than 8"),
        ({"norm": "l2", "eps": 0.0}, "eps=0.0 is not above 0"),
        ({"eps": float("nan")}, "not above 0"),
        ({"norm": "l3"}, "norm='l3'"),
        ({"pgd_images": 0}, "pgd_images=0 .* to leave pgd out, name the others in attacks"),
        ({"autoattack_images": -1}, "autoattack_images=-1"),
        ({"batch_size": 0}, "batch_size=0 is not at least 1$"),
        ({"attacks": ("clean", "pdg")}, "pdg; known"),
        ({"attacks": "pgd"}, "one word"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**settings)


@pytest.mark.parametrize(
    "given, training, wanted",
    [
        ({}, (), ("linf", 8 / 255)),
        ({"eps": 0.1}, (), ("linf", 0.1)),
        ({"norm": "l2", "eps": 2}, (), ("l2", 2)),
        ({}, ("l2", 0.5), ("l2", 0.5)),
        ({"eps": 1.0}, ("l2", 0.5), ("l2", 1.0)),
        ({"norm": "l2"}, ("l2", 0.5), ("l2", 0.5)),
        ({"norm": "l1", "eps": 12}, ("l2", 0.5), ("l1", 12)),
        ({}, ("linf", None), ("linf", 8 / 255)),
    ],
    ids=str,
)
def test_the_threat_is_the_one_given_and_else_that_of_training(given, training, wanted):
    config = EvaluationConfig(seed=3, **given).with_threat(*training)
    assert (config.norm, config.eps, config.seed) == (*wanted, 3)


@pytest.mark.parametrize(
    "given, training, message",
    [
        ({"norm": "l2"}, (), "eps must be given for norm='l2'"),
        ({"norm": "linf"}, ("l2", 0.5), "eps must be given for norm='linf': 0.5 is the bound of .* l2"),
        ({"eps": 5}, (), "8/255 rather than 8"),
    ],
    ids=str,
)
def test_a_bound_of_one_norm_is_not_taken_for_another(given, training, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**given).with_threat(*training)


def test_a_setting_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(TypeError, match="no setting 'pgd_limit': did you mean 'pgd_images'"):
        evaluate("resnet18x", (None, None), pgd_limit=3)
    with pytest.raises(ValueError, match="8/255 rather than 8"):
        evaluate("resnet18x", (None, None), EvaluationConfig(eps=0.1), eps=8)


def test_settings_need_no_torch():
    code = "import sys; from timm_arat.evaluation import EvaluationConfig as E; E(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "xpu:99", "mps:99"])
def test_a_device_that_is_not_here_is_said_before_weights_are_loaded(device):
    with pytest.raises(ValueError, match=f"device='{device}' is not here: .*give cpu, cuda"):
        evaluate("resnet18_arat", (None, None), device=device)
