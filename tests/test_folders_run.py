"""A run on folders of one's own, from training to publishing: classes keep their names wherever a split lacks one."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers_engine import forget, fresh_accelerate, tiny  # noqa: F401  # a fixture
from PIL import Image

from timm_arat import Robustness, evaluate
from timm_arat.data import DataConfig
from timm_arat.engine.config import ModelConfig, OptimizerConfig, TrainConfig, ValidationConfig
from timm_arat.engine.recipe import read_recipe
from timm_arat.engine.train import train
from timm_arat.evaluation import EvaluationConfig
from timm_arat.evaluation._known import known
from timm_arat.hub._assemble import assemble
from timm_arat.methods import StandardConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
ATTACKS = EvaluationConfig(batch_size=8, autoattack_images=4)


def photographs(root: Path, **classes: str) -> Path:
    """root/SPLIT/CLASS/IMAGE.png with four images of a grey of its own for each of the words of a split."""
    for split, names in classes.items():
        for name in names.split():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(4):
                shade = 20 * sum(map(ord, name)) % 256
                Image.new("RGB", (20, 18), (shade, 40 * number, shade)).save(root / split / name / f"{number}.png")
    return root


def config(root: Path, folder: Path, **changes) -> TrainConfig:
    data = DataConfig(name="folder", root=str(root), test_split="val", image_size=16, batch_size=6)
    network = ModelConfig(name="test_resnet")
    return tiny(folder, **{"data": data, "model": network, "evaluation": ATTACKS, "epochs": 1, **changes})


@pytest.mark.parametrize("classes", ["0 1 2", "apple mango zebra"])
def test_a_split_without_the_first_class_keeps_the_others_in_place(tmp_path, classes):
    root = photographs(tmp_path / "data", train=classes, val=" ".join(classes.split()[1:]))
    (results,) = train(config(root, tmp_path / "run"))
    assert [n for _, n in results.clean.per_class] == [0, 4, 4]
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == classes.split()
    data = DataConfig(**known(str(tmp_path / "run")).data)
    again = evaluate(tmp_path / "run", data, attacks=("clean",), progress=False)
    assert again.clean == results.clean and not again.data.note
    cards = assemble(tmp_path / "run", tmp_path / "cards" / "test_resnet.mine_linf26", "me/test_resnet.mine_linf26")
    assert Robustness.load(cards / "results.json").clean == results.clean


def test_a_run_that_starts_from_another_has_its_own_classes(tmp_path):
    first = photographs(tmp_path / "first", train="apple mango zebra", val="apple mango zebra")
    plain = dict(method=StandardConfig(), evaluation=EvaluationConfig(attacks=("clean",), batch_size=8))
    train(config(first, tmp_path / "a", **plain))
    forget()
    second = photographs(tmp_path / "second", train="0 1", val="0 1")
    start = ModelConfig(name=str(tmp_path / "a"), pretrained=True)
    (results,) = train(config(second, tmp_path / "b", model=start, **plain))
    model = timm.create_model(f"local-dir:{tmp_path / 'b' / 'model'}", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == ["0", "1"] and model.num_classes == 2
    assert results.class_names == ("0", "1")


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")  # timm's word to its user, who asked for it
def test_plateau_follows_a_validation_split(tmp_path):
    root = photographs(tmp_path / "data", train="a b", val="a b", test="a b")
    data = DataConfig(name="folder", root=str(root), val_split="val", image_size=16, batch_size=4)
    settings = dict(method=StandardConfig(), evaluation=EvaluationConfig(attacks=("clean",), batch_size=8), data=data)
    rate = OptimizerConfig(lr=0.01, schedule="plateau", by_step=False)
    train(config(root, tmp_path / "run", optimizer=rate, validation=ValidationConfig(steps=1), **settings))
    assert "val_clean" in (tmp_path / "run" / "summary.jsonl").read_text()


def test_another_folder_than_the_runs_is_said(tmp_path):
    own, other = photographs(tmp_path / "data", val="a"), photographs(tmp_path / "other", val="a")
    found = known(str(_with_recipe(tmp_path / "run", own)))
    asked = replace(DataConfig(name="folder", root=str(own), test_split="val"))
    assert not found.differences(asked, "linf", 8 / 255)
    assert found.differences(replace(asked, root=str(other)), "linf", 8 / 255) == [
        f"data.root {other} in the place of {own}"
    ]


def _with_recipe(run: Path, root: Path) -> Path:
    run.mkdir()
    (run / "config.yaml").write_text(f"data: {{name: folder, root: {root}, test_split: val}}\nattack: {{eps: 8/255}}\n")
    return run


def test_the_recipe_for_folders_trains_a_network_without_batchnorm_too(tmp_path):
    root = photographs(tmp_path / "data", train="a b", val="a b")
    words = ["--data.root", str(root), "--model.name", "test_vit"]
    words += ["--method.split_norm", "all", "--data.batch_size", "4", "--epochs", "1", "--threads", "1"]
    words += ["--evaluation.autoattack_images", "2", "--output", str(tmp_path / "run")]
    found = read_recipe("folder", *words)
    (results,) = train(found)
    assert results.autoattack.n == 2
    log = (tmp_path / "run" / "train.log").read_text().splitlines()
    said = next(line for line in log if "with 2 classes the AutoAttack at the end is not the standard version" in line)
    assert log.index(said) < next(index for index, line in enumerate(log) if "epoch 1/1" in line)
    with pytest.raises(ValueError, match=r"in a recipe method.split_norm, all, or none"):
        train(replace(found, method=replace(found.method, split_norm="batch"), output=str(tmp_path / "other")))
    assert torch.get_num_threads() == 1
