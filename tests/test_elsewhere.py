"""What users have and this checkout has not: the wheel alone, timm alone, weights of real size: `pytest -m extern`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import timm
import torch

pytestmark = pytest.mark.extern
ROOT = Path(__file__).parents[1]
UV = ROOT / ".tools/bin/uv"


def run(*command: object, folder: Path, **env: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=clean | env, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def uv() -> Path:
    if not UV.exists():
        pytest.skip("no uv in .tools to make environments with: use the README's command")
    return UV


@pytest.fixture(scope="module")
def wheel(uv, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(uv, "build", "-q", "--wheel", "--out-dir", folder, folder=ROOT)
    return next(folder.glob("*.whl"))


def test_the_wheel_alone_has_the_robust_model_and_trains(uv, wheel, tmp_path):
    env = {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "venv")}
    run(uv, "venv", "-q", tmp_path / "venv", folder=tmp_path)
    python = tmp_path / "venv/bin/python"
    run(uv, "pip", "install", "-q", "--python", python, f"timm_arat[digits] @ file://{wheel}", folder=tmp_path)
    code = (
        "import timm, timm_arat, torch\n"
        "assert 'site-packages' in timm_arat.__file__\n"
        "model = timm.create_model('resnet20_cifar_arat', pretrained=True).eval()\n"
        "x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))\n"
        "torch.save(model(x).detach(), 'logits.pt')\n"
    )
    # A proxy that leads nowhere: nothing is asked of the network.
    run(python, "-c", code, folder=tmp_path, HTTPS_PROXY="http://127.0.0.1:9", HF_HOME=str(tmp_path / "home"))
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = timm.create_model("resnet20_cifar_arat", pretrained=True).eval()(x)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)

    launch = [tmp_path / "venv/bin/accelerate", "launch", "-m", "timm_arat.train", "--config", "digits"]
    table = run(*launch, "--epochs", 1, "--evaluation.autoattack_images", 10, "--threads", 1, folder=tmp_path, **env)
    assert "AutoAttack" in table
    assert list(tmp_path.glob("runs/**/model/model.safetensors"))


def test_a_resnet50_goes_to_the_hub_and_to_a_machine_with_timm_alone(uv, hub, tmp_path):
    """Trained for an epoch: 94 MB of weights that are not random, by the commands of docs/publishing.md."""
    python, repo = shutil.which("python") or "python", "tester/resnet50_arat.digits_linf38"
    run(
        *(python, "recipes/train.py", "--output", tmp_path / "run", "--epochs", 1, "--twin", "null"),
        *("--model.name", "resnet50", "--model.kwargs", "{}", "--data.in_chans", 3, "--data.image_size", 32),
        *("--evaluation.autoattack_images", 10, "--evaluation.pgd_images", 20, "--method.attack.steps", 2),
        folder=ROOT,
    )
    run(
        *(python, "recipes/publish.py", tmp_path / "run", "--repo-id", repo, "--cards", tmp_path, "--images", 10),
        folder=ROOT,
        **hub.env,
    )
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = timm.create_model(f"local-dir:{tmp_path / 'run/model'}", pretrained=True).eval()(x)

    load = (
        "import torch, timm, sys\n{}\n"
        "x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))\n"
        "torch.save({}.eval()(x).detach(), sys.argv[1])\n"
    )
    overlay = f"dict(hf_hub_id='{repo}', num_classes=10, input_size=(3, 32, 32))"
    by_name = f"timm.create_model('resnet50_arat', pretrained=True, pretrained_cfg_overlay={overlay})"
    hub.run(load.format("import timm_arat", by_name), tmp_path / "by_name.pt")
    assert torch.equal(torch.load(tmp_path / "by_name.pt"), expected)

    alone = [uv, "run", "-q", "--isolated", "--no-project", "--with", f"timm=={timm.__version__}"]
    without = (
        "import importlib.util; assert importlib.util.find_spec('timm_arat') is None\n"
        "import huggingface_hub; assert huggingface_hub.constants.ENDPOINT.startswith('http://127.0.0.1')"
    )
    from_hub = f"timm.create_model('hf-hub:{repo}', pretrained=True)"
    code = load.format(without, from_hub)
    run(*alone, "--with", f"torch=={torch.__version__.split('+')[0]}", "python", "-c", code, tmp_path / "alone.pt",
        folder=tmp_path, **{key: value for key, value in hub.env.items() if key.startswith("HF_")})  # fmt: skip
    assert torch.equal(torch.load(tmp_path / "alone.pt"), expected)
