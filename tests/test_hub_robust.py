"""`list_robust`: a row for each checkpoint that loads, with the numbers of its results.json."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

import timm_arat
from timm_arat.models import _weights

EMBEDDED = "resnet20_cifar_arat.cifar10_linf8"


def test_the_embedded_checkpoint_is_listed_with_its_numbers():
    (row,) = [row for row in timm_arat.list_robust() if row.name == EMBEDDED]
    results = json.loads((_weights.CARDS / EMBEDDED / "results.json").read_text())
    assert row.clean == results["clean"]["accuracy"] and row.autoattack == results["autoattack"]["accuracy"]
    assert (row.n, row.norm, row.eps) == (results["autoattack"]["n"], "linf", 8 / 255)
    file = _weights.CARDS / EMBEDDED / "model.safetensors"
    assert row.where == str(file) and row.bytes == file.stat().st_size
    parameters = sum(value.numel() for value in timm.create_model(EMBEDDED, pretrained=True).state_dict().values())
    assert row.weights == parameters / 1e6
    assert {row.name for row in timm_arat.list_robust()} == set(timm.list_pretrained("*_arat*"))


def test_filters_and_the_table():
    small = "regnetx_002_arat.imagenette_linf8"
    for data, name in (
        ("cifar10", EMBEDDED),
        ("CIFAR-10", EMBEDDED),
        ("imagenette", small),
        ("Imagenette (96 px)", small),
    ):
        assert name in [row.name for row in timm_arat.list_robust(data=data, norm="linf")], data
    assert EMBEDDED not in [row.name for row in timm_arat.list_robust(norm="l2")]
    assert not timm_arat.list_robust(data="cifar100000")
    lines = str(timm_arat.list_robust(data="cifar10")).splitlines()
    assert lines[0].startswith("name") and any(EMBEDDED in line and "linf 8/255" in line for line in lines)
    assert len(str(timm_arat.list_robust(data="none")).splitlines()) == 1


def test_a_checkpoint_of_another_size_than_its_architecture_loads_by_name(tmp_path, monkeypatch):
    backbone = timm.create_model("resnet20_cifar", layers=(1, 1), channels=(8, 16), in_chans=1, num_classes=3)
    source, name = _weights.CARDS / EMBEDDED, "resnet20_cifar_arat.mine_linf8"
    monkeypatch.setattr(_weights, "CARDS", tmp_path)
    args = {"layers": [1, 1], "channels": [8, 16], "in_chans": 1}
    timm_arat.export(backbone, tmp_path / name, model_args=args)
    shutil.copy(source / "results.json", tmp_path / name)
    assert [row.name for row in timm_arat.list_robust()] == [name]
    loaded = timm.create_model("resnet20_cifar_arat", pretrained=True, pretrained_cfg=_weights.published(name))
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded.eval()(x), backbone.eval()(x))


def test_what_does_not_load_is_not_listed(tmp_path, monkeypatch):
    source = _weights.CARDS / EMBEDDED
    monkeypatch.setattr(_weights, "CARDS", tmp_path)
    card = Path(shutil.copytree(source, tmp_path / EMBEDDED))
    assert [row.name for row in timm_arat.list_robust()] == [EMBEDDED]
    (card / "results.json").write_text('{"format": "other"}')
    with pytest.warns(UserWarning, match="is not listed: .*results.json"):
        assert not timm_arat.list_robust()
    (card / "model.safetensors").unlink()
    assert not timm_arat.list_robust()
