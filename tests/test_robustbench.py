"""RobustBench's own loader, from its released wheel, finds our checkpoints: `uv run pytest -m extern`.

The release pins timm 1.0.9 and does not install beside a current one, so its files are taken without installing, and
its model zoo, which its loader asks only after timm, is left out.
"""

import importlib
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import timm
import torch

import timm_arat  # noqa: F401  # registers

pytestmark = pytest.mark.extern


@pytest.fixture(scope="module")
def robustbench(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("robustbench")
    uv = Path(__file__).parents[1] / ".tools/bin/uv"
    if not uv.exists():
        pytest.skip("no uv in .tools to fetch robustbench with: use the README's command")
    command = [uv, "run", "--no-project", "--with", "pip", "python", "-m", "pip", "download", "-q", "--no-deps"]
    done = subprocess.run([*command, "-d", folder, "robustbench==1.1.1"], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"robustbench cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    with pytest.MonkeyPatch.context() as patch:
        zoo = types.ModuleType("robustbench.model_zoo")
        zoo.__path__ = [str(folder / "robustbench" / "model_zoo")]
        zoo.model_dicts = {}
        package = types.ModuleType("robustbench")
        package.__path__ = [str(folder / "robustbench")]
        for name, module in {
            "gdown": types.ModuleType("gdown"),
            "pkg_resources": types.ModuleType("pkg_resources"),
            "requests": types.ModuleType("requests"),
            "robustbench": package,
            "robustbench.model_zoo": zoo,
            "robustbench.model_zoo.models": types.SimpleNamespace(model_dicts={}),
            "robustbench.zenodo_download": types.SimpleNamespace(
                DownloadError=OSError, zenodo_download=None, zenodo_download_and_unzip=None
            ),
        }.items():
            patch.setitem(sys.modules, name, module)
        yield package
    for name in [name for name in sys.modules if name.startswith("robustbench")]:
        del sys.modules[name]


def test_load_model_gives_the_embedded_checkpoint(robustbench):
    load_model = importlib.import_module("robustbench.utils").load_model
    model = load_model("Waseda2025Rethinking_resnet20", dataset="cifar10", threat_model="Linf")
    expected = timm.create_model("resnet20_cifar_arat.cifar10_linf8", pretrained=True).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x), expected(x)) and not model.training


def test_its_transforms_are_found(robustbench):
    data = importlib.import_module("robustbench.data")
    transform = data.get_timm_model_preprocessing("waseda2025rethinking_resnet50_imagenet_linf")
    assert "CenterCrop(size=(224, 224))" in repr(transform) or "CenterCrop(size=224)" in repr(transform)
