"""The one gate for weights: what is loaded is safetensors, whatever lies beside it or is named in its place."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import timm_arat
from timm_arat.models import WeightsNotFoundError, _weights, create, load_foreign

SMALL: dict[str, Any] = {"layers": (1, 1), "channels": (8, 16)}


class Payload:
    """Unpickled without care, it leaves a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.fixture
def trace(tmp_path: Path):
    """Where a planted pickle would leave its trace; there is none after the test."""
    trace = tmp_path / "the-payload-ran"
    yield trace
    assert not trace.exists(), "the payload ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported model with both branches."""
    torch.manual_seed(0)
    model = timm_arat.convert_split_norm(timm.create_model("resnet20_cifar", **SMALL))
    return timm_arat.export(model, tmp_path / "model", model_args=SMALL)


@pytest.fixture
def hub(folder: Path, monkeypatch) -> Path:
    """`folder` as what the Hub answers for org/model."""

    def answer(repo_id, filename, **where):
        if not (folder / filename).is_file():
            raise _weights.EntryNotFoundError("404")
        return str(folder / filename)

    monkeypatch.setattr(_weights, "hf_hub_download", answer)
    return folder


def plant(path: Path, trace: Path) -> Path:
    path.write_bytes(pickle.dumps({"state_dict": Payload(trace)}))
    return path


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def change(folder: Path, **fields: Any) -> None:
    """Change config.json; pretrained_cfg by its own fields."""
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= fields.pop("pretrained_cfg", {})
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_the_payload_of_these_tests_runs_where_nobody_takes_care(tmp_path):
    pickle.loads(plant(tmp_path / "x", tmp_path / "ran").read_bytes())
    assert (tmp_path / "ran").is_dir()


def test_a_folder_and_a_repository_load_as_timm_loads_them(folder, hub):
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for name in (f"local-dir:{folder}", "hf-hub:org/model", "hf_hub:org/model@v1"):
        model = create(name, pretrained=True).eval()
        with torch.no_grad():
            assert torch.equal(model(images()), expected(images())), name
    assert create(f"local-dir:{folder}", pretrained=True, num_classes=3)(images()).shape == (2, 3)
    assert create(f"local-dir:{folder}", pretrained=True, in_chans=1)(images()[:, :1]).shape == (2, 10)
    first = create(f"local-dir:{folder}").state_dict()["conv1.weight"]
    assert not torch.equal(first, expected.state_dict()["conv1.weight"]), "without pretrained no weights"


def test_names_of_timm_and_ours_with_a_file(folder):
    overlay = {"file": str(folder / "model.safetensors"), "num_classes": 10}
    for name in ("resnet20_cifar", "resnet20_cifar_arat"):
        model = create(name, pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
        assert torch.equal(model.state_dict()["conv1.weight"], load_file(overlay["file"])["conv1.weight"])
    with pytest.raises(RuntimeError, match="[Nn]o pretrained weights"):
        create("resnet20_cifar", pretrained=True)


def test_another_safetensors_file_does_not_hide_a_pickle(folder, trace):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    plant(folder / "pytorch_model.bin", trace)
    with pytest.raises(WeightsNotFoundError, match="pickle may run code.*pytorch_model.bin, other.safetensors"):
        create(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(ValueError, match="pickle may run code"):
        timm_arat.evaluate(folder, (images(), torch.tensor([0, 1])), attacks=("clean",))
    (folder / "pytorch_model.bin").unlink()
    create(f"local-dir:{folder}", pretrained=True)


def test_a_pickle_beside_the_weights_is_not_looked_at(folder, trace):
    plant(folder / "pytorch_model.bin", trace)
    create(f"local-dir:{folder}", pretrained=True)


def test_a_config_that_names_a_pickle_of_the_repository(hub, trace):
    plant(hub / "evil.bin", trace)
    change(hub, pretrained_cfg={"hf_hub_filename": "evil.bin"})
    with pytest.raises(ValueError, match=r"evil.bin.*from .safetensors only"):
        create("hf-hub:org/model", pretrained=True)
    change(hub, pretrained_cfg={"hf_hub_filename": "evil.bin", "custom_load": "hf"})
    with pytest.raises(ValueError, match=r"evil.bin.*from .safetensors only"):
        create("hf-hub:org/model", pretrained=True)


def test_a_config_that_points_elsewhere(hub, trace, tmp_path):
    """`file`, `url` and `source` of a foreign config.json are not followed: the weights beside it are loaded."""
    elsewhere = plant(tmp_path / "evil.pth", trace)
    change(
        hub, pretrained_cfg={"file": str(elsewhere), "url": f"file://{elsewhere}", "source": "x", "custom_load": True}
    )
    for name in ("hf-hub:org/model", f"local-dir:{hub}"):
        weight = create(name, pretrained=True).state_dict()["conv1.weight"]
        assert torch.equal(weight, load_file(hub / "model.safetensors")["conv1.weight"])


@pytest.mark.parametrize("name", ["resnet20_cifar", "resnet20_cifar_arat", "resnet18", "local-dir"])
@pytest.mark.parametrize("field", ["file", "url", "folder", "hf_hub_filename"])
def test_an_overlay_that_names_a_pickle(name, field, folder, hub, trace, tmp_path):
    evil = plant(tmp_path / "evil.pth", trace)
    (tmp_path / "holds").mkdir()
    plant(tmp_path / "holds" / "pytorch_model.bin", trace)
    overlay = {
        "file": {"file": str(evil)},
        "url": {"url": f"file://{evil}"},
        "folder": {"file": str(tmp_path / "holds"), "source": "local-dir"},
        "hf_hub_filename": {"hf_hub_id": "org/model", "hf_hub_filename": "evil.pth"},
    }[field]
    name = f"local-dir:{folder}" if name == "local-dir" else name
    with pytest.raises((ValueError, WeightsNotFoundError)):
        create(name, pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_checkpoint_path_that_is_a_pickle(trace, tmp_path, folder):
    for ending in ("pth", "npz", "safetensors"):
        evil = plant(tmp_path / f"evil.{ending}", trace)
        with pytest.raises(ValueError, match="evil"):
            create("resnet20_cifar", checkpoint_path=evil)
    model = create("resnet20_cifar", checkpoint_path=str(folder / "model.safetensors"), **SMALL)
    assert torch.equal(model.state_dict()["conv1.weight"], load_file(folder / "model.safetensors")["conv1.weight"])


def test_a_pickle_that_is_called_safetensors(folder, trace):
    plant(folder / "model.safetensors", trace)
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        create(f"local-dir:{folder}", pretrained=True)


def test_weights_of_half_precision_load_into_a_float32_model(folder):
    weights = load_file(folder / "model.safetensors")
    halved = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    save_file(halved, folder / "model.safetensors")
    model = create(f"local-dir:{folder}", pretrained=True).eval()
    rounded = create(f"local-dir:{folder}").eval()
    rounded.load_state_dict({key: value.to(weights[key].dtype) for key, value in halved.items()})
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(model(images()), rounded(images()))
    assert any(not torch.equal(model.state_dict()[key], weights[key]) for key in weights)


def test_one_line_says_what_was_loaded(caplog):
    with caplog.at_level(logging.INFO, logger="timm_arat"):
        timm.create_model("resnet20_cifar_arat", pretrained=True)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "timm_arat"]
    for part in ("cifar10_linf8: data CIFAR-10", "10 classes", "pixels 3x32x32", "threat linf eps 0.0313", "hub_cards"):
        assert part in line


# Other people's .pth files, by a person's own word.


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return timm.create_model("resnet20_cifar", zero_init_last=False, **SMALL).eval()


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
FORMS = {
    "plain": (lambda w: w, "", ()),
    "ddp": (lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "epoch": 3}, "state_dict", ("module.",)),
    "robustbench": (lambda w: {**{f"model.{k}": v for k, v in w.items()}, "mu": MEAN, "sigma": STD}, "", ("model.",)),
    "sequential": (
        lambda w: {**{f"1.{k}": v for k, v in w.items()}, "0.mean": MEAN.view(1, 3, 1, 1), "0.std": STD},
        "",
        ("1.",),
    ),
    "madrylab": (
        lambda w: {
            "model": {
                "module.normalizer.new_mean": MEAN[:, None, None],
                "module.normalizer.new_std": STD[:, None, None],
                **{f"module.model.{k}": v for k, v in w.items()},
                "module.attacker.normalize.new_mean": MEAN[:, None, None],
                "module.attacker.normalize.new_std": STD[:, None, None],
                **{f"module.attacker.model.{k}": v for k, v in w.items()},
            },
            "optimizer": {"state": {}},
            "epoch": 150,
        },
        "model",
        ("module.", "model.", "attacker.model."),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_foreign_file(form: str, tmp_path: Path) -> None:
    source, (wrap, inside, prefixes) = network(), FORMS[form]
    torch.save(wrap(source.state_dict()), tmp_path / "model.pth")
    torch.manual_seed(4)
    model = timm.create_model("resnet20_cifar", **SMALL).eval()
    report = load_foreign(model, tmp_path / "model.pth")
    with torch.no_grad():
        assert torch.equal(model(images()), source(images()))
    assert report.inside == inside and report.prefixes == prefixes and report.loaded == len(source.state_dict())
    if form in ("robustbench", "sequential", "madrylab"):
        assert report.mean == pytest.approx(MEAN.tolist()) and report.std == pytest.approx(STD.tolist())
        assert "normalises by mean" in str(report)
    for prefix in prefixes:
        assert prefix in str(report)


def test_a_foreign_file_with_a_payload(tmp_path, trace):
    torch.save({"state_dict": network().state_dict(), "args": Payload(trace)}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="more than tensors.*pickle may run code"):
        load_foreign(network(), tmp_path / "evil.pth")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "fc.bias"}, "fc.bias of the model's keys missing"),
        (lambda w: w | {"head.weight": torch.zeros(1)}, "head.weight of the file's unknown"),
        (lambda w: w | {"fc.bias": torch.zeros(7)}, r"fc.bias has shape \(7,\), the model's has \(10,\)"),
        (lambda w: {**w, **{f"module.{k}": v + 1 for k, v in w.items()}}, "twice, with different values"),
        (lambda w: {"epoch": 3}, "without tensors"),
        (lambda w: [1, 2], "wanted a state_dict"),
    ],
)
def test_a_foreign_file_of_another_model_changes_nothing(spoil, message, tmp_path):
    torch.save(spoil(network().state_dict()), tmp_path / "model.pth")
    model = timm.create_model("resnet20_cifar", **SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_foreign(model, tmp_path / "model.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_torn_foreign_file(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="torn"):
        load_foreign(network(), tmp_path / "model.pth")
    with pytest.raises(OSError):
        load_foreign(network(), tmp_path / "gone.pth")


# Cards that are torn, absent or better.


def test_a_torn_card_is_its_own_problem_only(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(_weights, "CARDS", tmp_path / "cards")
    name = "resnet20_cifar_arat.cifar10_linf8"
    for torn in ("config.json", "results.json", "hub.json", "model.safetensors"):
        shutil.rmtree(tmp_path / "cards", ignore_errors=True)
        card = Path(shutil.copytree(folder, tmp_path / "cards" / name))
        (card / "results.json").write_text("{}")
        assert _weights.published(name)
        if torn == "hub.json":
            (card / "model.safetensors").unlink()
        (card / torn).write_text('{"architecture": "resn')
        with pytest.warns(UserWarning, match=f"{name} has no weights here: .*{torn}"):
            assert _weights.published(name) == {}


def test_weights_that_the_wheel_leaves_out_are_named(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(_weights, "CARDS", tmp_path / "cards")
    name = "resnet20_cifar_arat.cifar100_linf8"
    card = Path(shutil.copytree(folder, tmp_path / "cards" / name))
    (card / "results.json").write_text("{}")
    (card / "model.safetensors").unlink()
    with pytest.raises(WeightsNotFoundError, match=f"in the repository of timm_arat, as hub_cards/{name}/model.safe"):
        timm.create_model(name, pretrained=True)


def test_a_foreign_file_of_safetensors(tmp_path):
    source, model = (timm.create_model("test_resnet", num_classes=3) for _ in range(2))
    save_file({f"module.{key}": value for key, value in source.state_dict().items()}, tmp_path / "x.safetensors")
    report = load_foreign(model, tmp_path / "x.safetensors")
    assert report.prefixes == ("module.",)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.state_dict().values(), strict=True)
    )
    (tmp_path / "torn.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="torn.safetensors cannot be read"):
        load_foreign(model, tmp_path / "torn.safetensors")
