"""A run, a checkpoint and a published name know their data and threat; results do not overwrite stronger ones."""

import json
import sys
from dataclasses import replace

import pytest
import timm
import yaml
from test_evaluation_result import result

from timm_arat.data import DataConfig
from timm_arat.evaluation import Robustness
from timm_arat.evaluation.__main__ import Options, main
from timm_arat.evaluation._known import Known, known
from timm_arat.evaluation._place import place, save


@pytest.mark.parametrize(
    "settings, threat",
    [
        ({"method": {"attack": {"norm": "l2", "eps": 0.5}}}, ("l2", 0.5)),
        ({"attack": {"norm": "l1", "eps": 12}, "method": {"name": "arat"}}, ("l1", 12.0)),
        ({"attack": {"norm": "l2", "eps": 0.5}, "evaluation": {"norm": None, "eps": 1.0}}, ("l2", 1.0)),
        ({"attack": {"norm": "l2", "eps": 0.5}, "evaluation": {"norm": "linf", "eps": None}}, ("linf", None)),
        ({"attack": {"norm": "linf", "eps": None}}, ("linf", None)),
        ({"method": {"name": "standard"}, "evaluation": None}, (None, None)),
    ],
    ids=str,
)
@pytest.mark.parametrize("file", ["config.yaml", "training.yaml"])
def test_the_threat_is_read_from_all_places(tmp_path, settings, threat, file):
    (tmp_path / file).write_text(yaml.safe_dump({"data": {"name": "torch/cifar10", "unheard_of": 1}, **settings}))
    own = known(str(tmp_path))
    assert (own.norm, own.eps) == threat and own.data == {"name": "torch/cifar10"}


def test_a_published_name_knows_what_its_card_says():
    own = known("resnet20_cifar_arat")
    assert own.data["name"].endswith("cifar10") and (own.norm, own.eps) == ("linf", 8 / 255)
    assert known("resnet18").data == {} == known("hf-hub:a/b").data
    with pytest.raises(ValueError, match="no model is called 'nonsense'"):
        known("nonsense")


def test_a_name_is_handed_on_as_it_is():
    for root in ("bilder/größe", "C:\\data\\x", 'a "b"'):
        assert Known({"name": "folder", "root": root}).words("")[:4] == ["--data.name", "folder", "--data.root", root]
    assert Known({"name": "digits", "image_size": 8, "download": False}).words("")[2:] == [
        *("--data.download", "false"), *("--data.image_size", "8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"threats": {"linf": (0.1,)}, "norm": "l2"}, "norm: threats has no use for that"),
        ({"corruptions": True, "attack": "pgd", "eps": 0.1}, "attack, eps: corruptions has no use for that"),
        ({"corruptions": True, "fast": True}, "fast: corruptions has no use for that"),
        ({"threats": {"linf": (0.1,)}, "pgd_images": 5}, "pgd_images: nothing here is measured on that many"),
        ({"threats": {"linf": (0.1,)}, "attack": "pgd", "autoattack_images": 5}, "autoattack_images: nothing here is"),
        ({"attack": "pgd", "autoattack_images": 5}, "autoattack_images: nothing here is measured on that many"),
    ],
)
def test_options_that_would_not_be_heard_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        Options(model="x", **words)


def test_another_data_set_takes_the_preprocessing_alone(tmp_path):
    data = {"name": "hfds/x", "root": "there", "image_size": 32, "in_chans": 1, "crop_pct": 1.0, "test_split": "val"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    own = known(str(tmp_path))
    assert own.words("")[:4] == ["--data.name", "hfds/x", "--data.root", "there"]
    assert own.words("digits") == ["--data.image_size", "32", "--data.in_chans", "1", "--data.crop_pct", "1.0"]


def test_files_of_other_threats_and_data_sets_lie_beside(tmp_path):
    def where(data="digits", norm="linf", eps=8 / 255, other=False, output=None, changed=(), **fields):
        config = DataConfig(name=data, **fields)
        return place(str(tmp_path), config, norm, eps, output=output, other=other, changed=changed).name

    assert where() == "results.json"
    assert where("hfds/a/cifar10", "l2", 0.5, other=True) == "results-cifar10-l2-0.5.json"
    assert where(other=True, output=str(tmp_path / "mine.json")) == "mine.json"
    result().save(tmp_path / "results.json")  # of blobs, linf 8/255
    assert where("blobs") == "results.json"
    half = where("blobs", other=True, changed=["name", "test_split", "image_size"], test_split="a/b", image_size=64)
    assert half == "results-blobs-test_split_a_b-image_size_64-linf-8_255.json"
    assert where("blobs", eps=4 / 255) == "results-blobs-linf-4_255.json"
    assert where("digits") == "results-digits-linf-8_255.json"
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="is no result, so it is not replaced"):
        where("blobs")


def test_a_stronger_result_is_not_replaced(tmp_path):
    whole = result()
    path = save(whole, tmp_path / "results.json")
    without = Robustness.from_json({key: value for key, value in whole.to_json().items() if key != "autoattack"})
    assert save(without, path).name == "results-pgd-20.json"
    assert save(result(range(7)), path).name == "results-autoattack-7.json"
    assert Robustness.load(path) == whole
    assert save(result(range(30)), path) == path and Robustness.load(path).clean.n == 30


def test_a_result_that_was_measured_otherwise_is_not_replaced_by_as_many_images(tmp_path):
    first = result()
    path = save(first, tmp_path / "results.json")
    assert save(first, path) == path, "the same again"
    n = first.autoattack.n
    named = {}
    for changes in (
        {"seed": 3},
        {"fast": not first.fast},
        {"data": replace(first.data, split="val", labels="f" * 32, fingerprint="a" * 32)},
        {"data": replace(first.data, fingerprint="b" * 32)},
    ):
        other = replace(first, **changes)
        where = save(other, path)
        named[where.name] = other
        assert save(other, path) == where, "the same again"
    assert list(named) == [
        *(f"results-autoattack-{n}-seed3.json", f"results-autoattack-{n}-{'exact' if first.fast else 'fast'}.json"),
        *(f"results-autoattack-{n}-val-aaaaaaaa.json", f"results-autoattack-{n}.json"),
    ]
    assert Robustness.load(path) == first
    assert all(Robustness.load(tmp_path / name) == other for name, other in named.items())
    many = replace(result(range(30)), seed=3)
    assert save(many, path) == path, "more images of the same set do replace it"


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    main()


def test_the_command_takes_a_run_for_what_it_is(tmp_path, monkeypatch, capsys):
    net = timm.create_model(
        "test_resnet", num_classes=10, in_chans=1, pretrained_cfg_overlay={"input_size": (1, 32, 32)}
    )
    run = tmp_path / "run"
    timm.models.save_for_hf(net, run / "model", model_args={"in_chans": 1}, safe_serialization=True)
    settings = {"data": {"name": "digits", "in_chans": 1}, "attack": {"norm": "l2", "eps": 0.5}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    few = ("--attack", "clean", "--pgd_images", 20)
    command(monkeypatch, run, *few)
    found = json.loads((run / "results.json").read_text())
    assert found["threat"]["norm"] == "l2" and found["threat"]["eps"] == 0.5 and found["data"]["name"] == "digits"
    assert "not what" not in capsys.readouterr().out
    command(monkeypatch, run, *few, "--eps", 0.75)
    assert "made for: the threat l2 0.75 in the place of l2 0.5" in capsys.readouterr().out
    assert (run / "results-digits-l2-0.75.json").is_file()
    command(monkeypatch, run, *few, "--data.image_size", 48)
    assert "data.image_size 48 in the place of" in capsys.readouterr().out
    assert json.loads((run / "results.json").read_text()) == found
    assert (run / "results-digits-image_size_48-l2-0.5.json").is_file()
    command(monkeypatch, run, "--attack", "clean", "--pgd_images", 10)
    assert "is kept" in capsys.readouterr().out and json.loads((run / "results.json").read_text()) == found


def test_a_bare_model_has_no_data_set(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command(monkeypatch, "test_resnet", "--attack", "clean")
    assert "data.name: test_resnet is no run or checkpoint" in capsys.readouterr().err


def test_a_local_folder_of_a_published_checkpoint_is_known_by_its_last_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("sets/pets", "others/pets", "others/cars", "model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "model/training.yaml").write_text("data: {name: hfds/pets, test_split: extra}\n")
    own = known("model")
    assert not own.differences(DataConfig(name="hfds/sets/pets", test_split="extra"), "linf", 0.1)
    assert "--data.test_split" in own.words("hfds/sets/pets")
    for other in ("hfds/others/cars", "hfds/org/pets", "wds/sets/pets"):
        (said,) = own.differences(DataConfig(name=other, test_split="extra"), "linf", 0.1)
        assert said == f"data.name {other} in the place of hfds/pets"
        assert "--data.test_split" not in own.words(other)

    (tmp_path / "model/training.yaml").write_text("data: {name: hfds/sets/pets}\n")  # a run, which says where
    own = known("model")
    assert not own.differences(DataConfig(name=f"hfds/{tmp_path}/sets/pets"), "linf", 0.1)
    assert own.differences(DataConfig(name="hfds/others/pets"), "linf", 0.1)
    (tmp_path / "model/training.yaml").write_text("data: {name: hfds/org/pets}\n")  # on the Hub
    assert known("model").differences(DataConfig(name="hfds/others/pets"), "linf", 0.1)
    (tmp_path / "pets").mkdir()  # beside it, so that it is not the one elsewhere
    (tmp_path / "model/training.yaml").write_text("data: {name: hfds/pets}\n")
    assert known("model").differences(DataConfig(name="hfds/others/pets"), "linf", 0.1)
