"""Export: the plain backbone, bit for bit, in a process that does not know us."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from helpers_engine import fresh_accelerate, tiny  # noqa: F401  # a fixture
from safetensors.torch import load_file, save_file

from timm_arat import ARAT, PGD, export, in_pixels
from timm_arat.engine.train import train
from timm_arat.evaluation import EvaluationConfig, fingerprint
from timm_arat.hub._agree import check_run
from timm_arat.norm import convert_split_norm, is_split, norm_branch

READ = """
import sys, json, timm, torch
assert "timm_arat" not in sys.modules
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
x = torch.rand((2, 3, 160, 160), generator=torch.Generator().manual_seed(0))
torch.save(model(x).detach(), sys.argv[2])
assert "timm_arat" not in sys.modules
"""


def trained(name: str) -> torch.nn.Module:
    """A model whose branches differ."""
    torch.manual_seed(0)
    method = ARAT(timm.create_model(name, num_classes=7), attack=PGD(steps=1)).train()
    method(torch.rand(4, 3, 64, 64), torch.randint(7, (4,)))
    return method.model.to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_process_without_timm_arat_gets_the_main_branch_bit_for_bit(name, tmp_path):
    model = trained(name)
    folder = export(model, tmp_path / "model", threat={"norm": "linf"})
    subprocess.run([sys.executable, "-c", READ, folder, tmp_path / "logits.pt"], check=True, timeout=300)
    x = torch.rand((2, 3, 160, 160), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.to(memory_format=torch.contiguous_format)
        with norm_branch(plain, "main"):
            expected = plain(x)
        with norm_branch(plain, "aux"):
            assert not torch.equal(expected, plain(x))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    assert is_split(model)  # left as it was
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "aux_norm.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == name and config["num_classes"] == 7 and config["threat"] == {"norm": "linf"}


def test_an_export_that_does_not_read_back_is_an_error(tmp_path, monkeypatch):
    model = trained("test_resnet")

    def spoil(plain, folder, **settings):
        from timm.models import save_for_hf

        save_for_hf(plain, folder, **settings)
        weights = {name: value + 1 if name == "fc.bias" else value for name, value in plain.state_dict().items()}
        save_file(weights, f"{folder}/model.safetensors")

    monkeypatch.setattr("timm_arat.hub._export.save_for_hf", spoil)
    with pytest.raises(ValueError, match="does not give back"):
        export(model, tmp_path)


def test_a_model_that_timm_could_not_build_again_is_refused_at_once(tmp_path):
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    with pytest.raises(
        ValueError, match="Sequential cannot be exported: it has no pretrained_cfg with architecture and"
    ):
        export(plain, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_half_precision_is_half_the_size_and_loads_as_its_rounded_weights(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=5, layers=(1, 1), channels=(16, 32), zero_init_last=False)
    convert_split_norm(model)
    args = {"layers": (1, 1), "channels": (16, 32), "zero_init_last": False}
    whole, half = (export(model, tmp_path / str(h), model_args=args, half=h) for h in (False, True))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert 0.4 < sizes[1] / sizes[0] < 0.65
    loaded = timm.create_model(f"local-dir:{half}", pretrained=True).eval()
    rounded = timm.create_model(f"local-dir:{whole}", pretrained=True).eval()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(x), rounded(x)) and loaded.conv1.weight.dtype == torch.float32
    with torch.no_grad():
        model.conv1.weight[0] = 1e6
    with pytest.raises(ValueError, match="conv1.weight does not fit half precision"):
        export(model, tmp_path / "large", model_args=args, half=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_in_half_precision_is_evaluated_as_it_is_published(tmp_path):
    folder = tmp_path / "run"
    train(tiny(folder, half=True, epochs=1, evaluation=EvaluationConfig(batch_size=200, autoattack_images=4)))
    assert load_file(folder / "model/model.safetensors")["conv1.weight"].dtype == torch.float16
    results = check_run(folder)  # of these weights, and these the trained ones after rounding
    assert results.weights == fingerprint(
        in_pixels(timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True))
    )
