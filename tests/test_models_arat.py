"""`<backbone>_arat`: robust weights by name; where they lie, and what is said where they do not."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import get_arch_pretrained_cfgs

import timm_arat
from timm_arat.hub import export
from timm_arat.hub._curves import split_model
from timm_arat.models import WeightsNotFoundError, _weights
from timm_arat.norm import is_split, norm_branch, split_norms

IMAGENET = ["resnet18_arat", "resnet34_arat", "resnet50_arat", "wide_resnet50_2_arat"]
IMAGENET += ["regnetx_002_arat", "test_convnext3_arat"]
CIFAR = ["resnet20_cifar_arat", "resnet18_cifar_arat", "resnet50_cifar_arat", "wide_resnet34_10_cifar_arat"]
EMBEDDED = "resnet20_cifar_arat.cifar10_linf8"
NAME = "resnet20_cifar_arat"
SMALL: dict[str, Any] = {"layers": (1, 1), "channels": (8, 16)}


def images(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cards(tmp_path, monkeypatch) -> Path:
    """An empty hub_cards/, and our names as they are registered with it."""
    monkeypatch.setattr(_weights, "CARDS", tmp_path / "cards")
    (tmp_path / "cards").mkdir()
    return tmp_path / "cards"


@pytest.fixture
def split(tmp_path) -> Path:
    """A small trained-like model with both branches, exported."""
    torch.manual_seed(1)
    model = timm_arat.convert_split_norm(timm.create_model("resnet20_cifar", **SMALL))
    for _, norm in split_norms(model):
        norm.aux_bn[0].weight.data.uniform_(0.5, 1.5)
        norm.aux_bn[0].running_mean.normal_()
    return export(model, tmp_path / "exported", model_args=SMALL)


def test_the_names_of_the_design_are_there():
    assert set(IMAGENET + CIFAR) == set(timm.list_models("*_arat"))
    tags = {name: get_arch_pretrained_cfgs(name) for name in IMAGENET + CIFAR}
    assert all(set(tags[name]) == {f"{name}.in1k_linf4", f"{name}.imagenette_linf8"} for name in IMAGENET)
    assert all(set(tags[name]) == {f"{name}.cifar10_linf8", f"{name}.cifar100_linf8"} for name in CIFAR)
    classes = {name: cfg.num_classes for cfgs in tags.values() for name, cfg in cfgs.items()}
    assert classes["resnet50_arat.in1k_linf4"] == 1000 and classes["resnet50_arat.imagenette_linf8"] == 10
    assert classes["resnet18_cifar_arat.cifar10_linf8"] == 10
    assert classes["resnet18_cifar_arat.cifar100_linf8"] == 100


@pytest.mark.parametrize("name", IMAGENET + CIFAR)
def test_it_is_the_plain_backbone(name: str) -> None:
    backbone = name.removesuffix("_arat")
    with torch.device("meta"):
        # A name without a tag is the checkpoint that there is, of ten classes where it is of Imagenette.
        untrained = name if "cifar" in name else f"{name}.in1k_linf4"
        model, plain = timm.create_model(untrained), timm.create_model(backbone)
    assert type(model) is type(plain)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    cfg: Any = model.pretrained_cfg
    assert cfg["architecture"] == backbone, "what is exported names the plain architecture"
    theirs: Any = plain.pretrained_cfg
    assert cfg["mean"] == theirs["mean"]
    assert "cifar" not in name or not any(cfg["mean"])
    assert timm.model_entrypoint(name).__module__ == "timm_arat.models.arat"


@pytest.mark.parametrize("name", [f"{n}.in1k_linf4" for n in IMAGENET] + [f"{n}.cifar100_linf8" for n in CIFAR])
def test_nothing_points_to_weights_that_do_not_exist(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    assert not (cfg.url or cfg.file or cfg.hf_hub_id or cfg.hf_hub_filename)
    assert name not in timm.list_pretrained("*_arat*")
    with pytest.raises(WeightsNotFoundError) as error:
        timm.create_model(name, pretrained=True)
    said = str(error.value)
    assert "\n" not in said and name in said and EMBEDDED in said, "what exists"
    for way in ("recipes/train.py", "local-dir:", "pretrained_cfg_overlay=dict(file="):
        assert way in said


def test_list_pretrained_lists_what_there_is():
    exist = {folder.name for folder in _weights.CARDS.iterdir() if _weights.published(folder.name)}
    assert EMBEDDED in exist
    assert set(timm.list_pretrained("*_arat*")) == exist


def test_the_embedded_model_needs_no_network():
    """Also the first lines of the README."""
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import timm, timm_arat, torch\n"
        f"model = timm.create_model('{NAME}', pretrained=True).eval()\n"
        "print(model.pretrained_cfg['tag'], model.num_classes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["cifar10_linf8", "10"], done.stderr


def test_the_embedded_model_is_the_published_one_in_both_branches():
    folder = _weights.CARDS / EMBEDDED
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    plain, both = (timm.create_model(NAME, pretrained=True, split_norm=s).eval() for s in (False, True))
    x = images()
    with torch.no_grad():
        assert not is_split(plain) and torch.equal(plain(x), expected(x))
        with norm_branch(both, "main"):
            assert torch.equal(both(x), expected(x))
        with norm_branch(both, "aux"):
            assert not torch.equal(both(x), expected(x))
    aux = load_file(folder / _weights.AUX_NORM)
    own = both.state_dict()
    assert all(torch.equal(own[key], value) for key, value in aux.items()) and len(aux) == 5 * len([*split_norms(both)])
    results = json.loads((folder / "results.json").read_text())
    assert plain.pretrained_cfg["num_classes"] == 10 and results["autoattack"]["n"] >= 500


@pytest.mark.parametrize("change", [{"num_classes": 3}, {"num_classes": 0}, {"in_chans": 1}, {"global_pool": "max"}])
def test_weights_adapt_as_timm_s_do(change) -> None:
    model = timm.create_model(NAME, pretrained=True, **change).eval()
    own, trained = model.state_dict(), load_file(_weights.CARDS / EMBEDDED / _weights.WEIGHTS)
    assert torch.equal(own["layer1.0.conv1.weight"], trained["layer1.0.conv1.weight"])
    assert model(images(change.get("in_chans", 3))).shape == (2, change.get("num_classes", 10) or 64)


def test_features_only_has_the_trained_weights():
    model = timm.create_model(NAME, pretrained=True, features_only=True).eval()
    whole = timm.create_model(NAME, pretrained=True).eval()
    for one, other in zip(model(images()), whole.forward_intermediates(images(), intermediates_only=True), strict=True):
        assert torch.equal(one, other)


def test_a_file_takes_the_place_of_registered_weights(split: Path):
    overlay = {"file": str(split / "model.safetensors")}
    name = "resnet20_cifar_arat.cifar100_linf8"
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay | {"num_classes": 10}, **SMALL)
    for key, value in load_file(overlay["file"]).items():
        assert torch.equal(model.state_dict()[key], value)
    both = timm.create_model(
        name, pretrained=True, split_norm=True, pretrained_cfg_overlay=overlay | {"num_classes": 10}, **SMALL
    )
    for key, value in load_file(split / "aux_norm.safetensors").items():
        assert torch.equal(both.state_dict()[key], value)


def test_split_norm_without_weights_starts_both_branches_alike():
    model = timm.create_model(NAME, split_norm=True).eval()
    x = images()
    with torch.no_grad(), norm_branch(model, "aux"):
        aux = model(x)
    assert is_split(model) and torch.equal(model(x), aux)


def test_split_norm_of_a_network_without_batchnorm_is_of_its_affines():
    plain = timm.create_model("test_convnext3_arat")
    layernorms = [name for name, module in plain.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    model = timm.create_model("test_convnext3_arat", split_norm=True)
    assert len(layernorms) == 9 and [name for name, _ in split_norms(model)] == layernorms


def test_both_branches_of_layernorms_come_back(tmp_path: Path):
    trained = timm_arat.convert_split_norm(timm.create_model("test_convnext3", num_classes=3), norms="all")
    for _, norm in split_norms(trained):
        norm.aux_bn[0].weight.data.uniform_(0.5, 1.5)
    folder = export(trained, tmp_path / "exported")
    overlay = {"file": str(folder / "model.safetensors"), "num_classes": 3}
    name = "test_convnext3_arat.imagenette_linf8"
    found = timm.create_model(name, pretrained=True, split_norm=True, pretrained_cfg_overlay=overlay, num_classes=3)
    own, theirs = trained.state_dict(), found.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)
    assert split_model(folder).state_dict().keys() == own.keys()


def test_split_norm_of_a_checkpoint_with_one_branch(split: Path):
    (split / "aux_norm.safetensors").unlink()
    overlay = {"file": str(split / "model.safetensors"), "num_classes": 10}
    with pytest.raises(WeightsNotFoundError, match="aux_norm.safetensors.*convert_split_norm"):
        timm.create_model(NAME, pretrained=True, split_norm=True, pretrained_cfg_overlay=overlay, **SMALL)


def test_split_norm_with_another_model_s_norms(split: Path):
    aux = load_file(split / "aux_norm.safetensors")
    aux.pop(next(iter(aux)))
    save_file(aux, split / "aux_norm.safetensors")
    overlay = {"file": str(split / "model.safetensors"), "num_classes": 10}
    with pytest.raises(ValueError, match="is of another model.* 0 of their keys are unknown, 1 are missing"):
        timm.create_model(NAME, pretrained=True, split_norm=True, pretrained_cfg_overlay=overlay, **SMALL)


def test_a_pickle_is_refused(tmp_path: Path):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="pickle may run code.*save_file"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "model.pt")})
    with pytest.raises(ValueError, match="weights come from a file or the Hub"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"url": "https://example.com/model.pth"})


def test_a_folder_of_pickles_is_not_evaluated(tmp_path: Path, split: Path):
    (split / "model.safetensors").unlink()
    torch.save({}, split / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no model.safetensors.*pickle may run code: export it again"):
        timm_arat.evaluate(split, (images(), torch.tensor([0, 1])), attacks=("clean",))


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(WeightsNotFoundError, match="there is no file .*gone.safetensors"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "gone.safetensors")})


def test_a_checkpoint_lies_on_the_hub_once_it_is_published(cards: Path, split: Path):
    name = "resnet20_cifar_arat.cifar10_linf8"
    assert _weights.published(name) == {}
    shutil.copytree(split, cards / name)
    assert _weights.published(name) == {}, "not evaluated"
    (cards / name / "results.json").write_text("{}")
    assert _weights.published(name)["file"] == str(cards / name / "model.safetensors")
    (cards / name / "model.safetensors").unlink()
    assert _weights.published(name) == {}
    (cards / name / "hub.json").write_text(json.dumps({"repo_id": "org/model"}))
    assert _weights.published(name) == {}, "assembled, not published"
    record = {"repo_id": "org/model", "revision": "1" * 40, "sha256": "x", "url": "http://127.0.0.1:8000/org/model"}
    (cards / name / "hub.json").write_text(json.dumps(record))
    assert _weights.published(name) == {}, "published on another server: a rehearsal"
    (cards / name / "hub.json").write_text(json.dumps(record | {"url": "https://huggingface.co/org/model/commit/1"}))
    found = _weights.published(name)
    assert found["hf_hub_id"] == f"org/model@{'1' * 40}" and "file" not in found


def test_what_comes_from_the_hub_has_the_published_sha256(cards: Path, split: Path, monkeypatch):
    file = split / "model.safetensors"
    monkeypatch.setattr(_weights, "hf_hub_download", lambda *a, **k: str(split / a[1]))
    (cards / EMBEDDED).mkdir()
    record = {"repo_id": "org/model", "revision": "1" * 40, "url": "https://huggingface.co/org/model"}
    record["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    overlay = {"hf_hub_id": f"org/model@{'1' * 40}"}
    for sha256, fits in ((record["sha256"], True), ("0" * 64, False)):
        (cards / EMBEDDED / "hub.json").write_text(json.dumps(record | {"sha256": sha256}))
        if fits:
            timm.create_model(EMBEDDED, pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
        else:
            with pytest.raises(WeightsNotFoundError, match="published was 0000"):
                timm.create_model(EMBEDDED, pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)


def test_any_backbone_joins_by_one_line():
    code = (
        "import timm, timm_arat\n"
        "timm_arat.register('convnextv2_atto')\n"
        "timm_arat.register('test_resnet', tags={'pets_linf4': 37})\n"
        "model = timm.create_model('convnextv2_atto_arat')\n"
        "pets = timm.create_model('test_resnet_arat')\n"
        "print(model.pretrained_cfg['architecture'], model.num_classes, pets.num_classes)\n"
        "try: timm_arat.register('resnet5000')\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "convnextv2_atto 1000 37",
        "register('resnet5000'): timm knows no such model; timm.list_models() names them all",
    ], done.stderr


def test_a_name_without_a_tag_is_the_best_checkpoint_that_exists(tmp_path: Path):
    """In the written order of tags, without a change of code; a folder of an unplanned tag comes after them."""
    code = (
        "import sys, timm, timm_arat, torch, json, pathlib\n"
        "from timm_arat.models import _weights\n"
        "cards = _weights.CARDS = pathlib.Path(sys.argv[1])\n"
        "def publish(tag, classes):\n"
        "    model = timm.create_model('test_resnet', num_classes=classes)\n"
        "    folder = timm_arat.export(model, cards / f'test_resnet_arat.{tag}')\n"
        "    (folder / 'results.json').write_text('{}')\n"
        "def show():\n"
        "    timm_arat.register('test_resnet', {'in1k_linf4': 1000, 'imagenette_linf8': 10})\n"
        "    model = timm.create_model('test_resnet_arat', pretrained=True)\n"
        "    print(model.pretrained_cfg['tag'], model.num_classes, len(timm.list_pretrained('test_resnet_arat*')))\n"
        "for tag, classes in (('pets_linf4', 37), ('imagenette_linf8', 10), ('in1k_linf4', 1000)):\n"
        "    publish(tag, classes)\n"
        "    show()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["pets_linf4 37 1", "imagenette_linf8 10 2", "in1k_linf4 1000 3"], done.stderr


def test_an_exported_arat_model_is_plain(tmp_path: Path):
    model = timm.create_model(NAME, pretrained=True, split_norm=True)
    folder = export(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "resnet20_cifar" and "split_norm" not in config["model_args"]
    assert str(tmp_path) not in json.dumps(config) and "hub_cards" not in json.dumps(config)


@pytest.mark.parametrize(
    ("name", "dataset", "threat"),
    [
        ("Waseda2025Rethinking_resnet18", "cifar10", "Linf"),
        ("Waseda2025Rethinking_wide-resnet34-10", "cifar100", "Linf"),
        ("Waseda2025Rethinking_resnet50", "imagenet", "Linf"),
    ],
)
def test_robustbench_s_rule_finds_a_name(name: str, dataset: str, threat: str) -> None:
    # The rule of its load_model; tests/test_robustbench.py runs its own code.
    assert timm.is_model(f"{name.lower().replace('-', '_')}_{dataset}_{threat.lower()}")


def test_robustbench_s_name_takes_pixels():
    x = images()
    model = timm.create_model("waseda2025rethinking_resnet20_cifar10_linf", num_classes=10, pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(x), timm.create_model(EMBEDDED, pretrained=True).eval()(x))
    torch.manual_seed(0)
    wrapped = timm.create_model("waseda2025rethinking_resnet18_imagenet_linf", num_classes=1000).eval()
    torch.manual_seed(0)
    plain = timm.create_model("resnet18_arat.in1k_linf4").eval()
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), timm_arat.in_pixels(plain)(x))
    assert wrapped.default_cfg["input_size"] == (3, 224, 224), "RobustBench reads it for its transforms"
