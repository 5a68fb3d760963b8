"""Averages of the weights: what goes in, the statistics that belong to them, and averages of nothing."""

import json
from pathlib import Path
from types import SimpleNamespace

import helpers_engine
import pytest
import timm
import torch
from helpers_engine import fresh_accelerate, rows, session_of  # noqa: F401  # a fixture
from safetensors.torch import load_file

from timm_arat import PGD
from timm_arat.engine import checkpoint
from timm_arat.engine.companions.average import Average, reestimate
from timm_arat.engine.config import AverageConfig, TrainConfig
from timm_arat.engine.loop import Loop
from timm_arat.engine.state import load_tree
from timm_arat.engine.train import train
from timm_arat.methods import ARAT, ARATConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    """One epoch of ARAT."""
    return helpers_engine.tiny(folder, **{"method": ARATConfig(weight=5.0), "epochs": 1, **changes})


def test_reestimated_statistics_are_the_cumulative_means_of_each_branch():
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=10, layers=(1, 1), channels=(8, 8), stem_width=8)
    method = ARAT(model, attack=PGD(eps=0.1, steps=1))
    batches = [(torch.rand(16, 3, 8, 8), torch.randint(10, (16,))) for _ in range(3)]
    seen = []
    handle = model.conv1.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    reestimate(method, batches)
    handle.remove()
    # Of the forwards of each batch, the last two train: clean images through aux, adversarial ones through main.
    each = len(seen) // 3
    for norm, place in ((model.bn1, -1), (model.bn1.aux_bn[0], -2)):
        means = torch.stack([seen[(n + 1) * each + place].mean((0, 2, 3)) for n in range(3)]).mean(0)
        torch.testing.assert_close(norm.running_mean, means)
        assert norm.momentum == 0.1
        assert int(norm.num_batches_tracked) == 3


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages_are_what_they_say(kind):
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=10, layers=(1, 1), channels=(8, 8), stem_width=8)
    method = ARAT(model)
    settings = AverageConfig(kind=kind, decay=0.75, start_epoch=1, every=2)
    config = SimpleNamespace(average=settings, epochs=2)
    average = Average(SimpleNamespace(accelerator=None, method=method, config=config, updates=4))
    assert average.candidate(method) is method and average.row() == {"averaged_updates": 0}
    values = []
    for step in range(1, 9):
        with torch.no_grad():
            model.fc.bias.fill_(float(step))
        average.after_update(step, epoch=0 if step < 3 else 1)
        values.append(float(step))
    found = float(average.average.module["network"].model.fc.bias.detach()[0])
    if kind == "swa":
        assert found == pytest.approx(sum([4, 6, 8]) / 3)
    else:
        expected = 3.0
        for value in values[3:]:
            expected = 0.75 * expected + 0.25 * value
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_averaged_run_evaluates_and_exports_the_average(tmp_path, kind):
    train(tiny(tmp_path, average=AverageConfig(kind=kind, every=3, batches=2, decay=0.5)))
    trained = load_tree(checkpoint.newest(tmp_path / "checkpoints") / "training")["method"]
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert not torch.equal(trained["network.model.conv1.weight"], exported["conv1.weight"])
    assert int(exported["bn1.num_batches_tracked"]) == 2
    facts = json.loads((tmp_path / "model/config.json").read_text())["training"]
    assert facts["average"] == kind and facts["averaged_updates"] == rows(tmp_path)[0]["averaged_updates"]
    assert facts["averaged_updates"] == {"ema": 10, "swa": 3}[kind]


@pytest.mark.parametrize(
    "settings",
    [{"kind": "swa", "every": 11}, {"kind": "swa", "every": 4, "start_epoch": 1}, {"kind": "ema", "start_epoch": 1}],
    ids=str,
)
def test_an_average_of_nothing_is_refused_before_training(tmp_path, settings):
    with pytest.raises(ValueError, match="none of the 10 steps of 1 epochs.*or set kind to none"):
        session_of(tiny(tmp_path, average=AverageConfig(**settings)))


def test_a_best_epoch_before_the_average_begins_is_said_aloud_and_not_called_averaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        Loop, "_validate", lambda self, _: {"val_clean": 0.0, "val_robust": 1.0 - self.session.images.epoch / 2}
    )
    train(tiny(tmp_path, epochs=2, average=AverageConfig(kind="ema", start_epoch=1, batches=1)))
    assert "WARNING: the best epoch, 1, comes before" in capsys.readouterr().out
    facts = json.loads((tmp_path / "model/config.json").read_text())["training"]
    assert (facts["average"], facts["averaged_updates"]) == ("ema", 0)
    assert [row["averaged_updates"] for row in rows(tmp_path)] == [0, 10]


def test_statistics_are_of_random_images_where_the_data_come_class_by_class(tmp_path):
    config = tiny(tmp_path, average=AverageConfig(kind="ema", batches=2))
    session = session_of(config)
    order = sorted(range(len(session.images)), key=lambda n: int(session.images[n][1]))
    whole = session.images.__getitems__
    session.images.__getitems__ = lambda chosen: whole([order[n] for n in chosen])
    average = next(each for each in session.companions if isinstance(each, Average))
    found = [torch.cat([y for _, y in average._batches()]) for _ in range(2)]
    assert len(set(found[0].tolist())) == 10
    assert torch.equal(*found), "the same images in each epoch"


@pytest.mark.parametrize("branch", ["main", "aux"])
def test_frozen_norms_keep_their_statistics_and_serve_the_attack_of_an_average(branch, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=10, layers=(1, 1), channels=(8, 8), stem_width=8)
    method = ARAT(model, attack=PGD(eps=0.1, steps=1))
    method.freeze_norms((branch,))
    frozen = model.bn1 if branch == "main" else model.bn1.aux_bn[0]
    before, seen = frozen.running_mean.clone(), []
    model.fc.register_forward_hook(lambda *args: seen.append((model.bn1.training, model.bn1.track_running_stats)))
    reestimate(method, [(torch.rand(16, 3, 8, 8), torch.randint(10, (16,)))])
    assert torch.equal(frozen.running_mean, before)
    # The attack's pass by the main branch: by its statistics where it is frozen, by the batch's where it is not.
    assert seen[0] == ((False, True) if branch == "main" else (True, False))
