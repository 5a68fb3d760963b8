"""Export: the plain backbone, bit for bit, in a process that does not know us."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from timm_arat import ARAT, PGD, export
from timm_arat.norm import is_split, norm_branch

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
