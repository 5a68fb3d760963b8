"""Training in one process: what a run leaves, resuming, averaging, and the errors on the way."""

import json
import random
from dataclasses import replace
from pathlib import Path

import helpers_engine
import pytest
import timm
import torch
from accelerate import Accelerator
from helpers_engine import DATA, MODEL, companion, forget, fresh_accelerate, same, session_of  # noqa: F401  # a fixture
from safetensors.torch import load_file

from timm_arat import PGD, in_pixels
from timm_arat.config import read
from timm_arat.data import load
from timm_arat.engine.batches import SeededBatches, stack
from timm_arat.engine.companions.balance import Balance
from timm_arat.engine.config import (
    AnalysisConfig,
    AverageConfig,
    AWPConfig,
    BalanceConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from timm_arat.engine.identity import check_identity, identity
from timm_arat.engine.log import Log
from timm_arat.engine.loop import Interrupted, Loop
from timm_arat.engine.model import build_model, weights_name
from timm_arat.engine.recipe import VARIANTS
from timm_arat.engine.train import both, train
from timm_arat.evaluation._model import fingerprint, open_model
from timm_arat.methods import ARATConfig, HATConfig, LBGATConfig, MadryConfig, StandardConfig, TRADESConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    """Two epochs of ARAT."""
    arat = ARATConfig(weight=5.0)
    return helpers_engine.tiny(
        folder, **{"method": arat, "optimizer": OptimizerConfig(lr=0.05, warmup_epochs=1), **changes}
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights" / "last.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of two epochs with a twin."""
    folder = tmp_path_factory.mktemp("run") / "run"
    results = train(tiny(folder, twin=StandardConfig()))
    assert [r.model for r in results] == ["resnet20_cifar arat", "resnet20_cifar standard"]
    forget()
    return folder


def test_a_run_leaves_what_the_design_promises(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "summary.jsonl", "checkpoints", "model", "results.json", "weights", "twin"} <= names
    rows = [json.loads(line) for line in (run / "summary.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"loss", "ce_adv", "ce_clean", "invariance", "balance", "lr", "val_clean", "val_robust"} <= rows[0].keys()
    assert json.loads((run / "results.json").read_text())["fast"]


def test_results_are_of_the_exported_model_whatever_training_made_of_its_layers(tmp_path):
    """Depthwise convolutions that stay in float32 have a class of their own, which a hash of the model would show."""
    model = ModelConfig(name="test_efficientnet")
    data = replace(DATA, image_size=32, in_chans=3)
    (result,) = train(tiny(tmp_path, model=model, data=data, mixed_precision="bf16", epochs=1))
    exported = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert result.weights == fingerprint(in_pixels(exported))


def test_the_exported_model_is_the_main_branch_as_a_plain_timm_model(run):
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    best = load_file(run / "weights" / "best.safetensors")
    plain = {name: value for name, value in best.items() if "aux_bn" not in name}
    assert same(model.state_dict(), plain)
    assert len(best) > len(plain)


def test_trades_trains_by_its_name_in_a_recipe(tmp_path):
    words = f"--config digits --method.name trades --twin null --output {tmp_path / 'run'} --epochs 1 --threads 1 "
    words += "--model.kwargs.channels [8,16] --attack.steps 1 --validation.steps 1 --evaluation.attacks [clean]"
    config = read(TrainConfig, words.split(), variants=VARIANTS, prog="x", description="")
    assert config.method == TRADESConfig() and config.attack == PGD(eps=0.15, steps=1)
    (result,) = train(config)
    assert result.model == "resnet20_cifar trades"
    (row,) = [json.loads(line) for line in (tmp_path / "run/summary.jsonl").read_text().splitlines()]
    assert row["kl"] > 0
    assert row["loss"] == pytest.approx(row["ce_clean"] + 6 * row["kl"], rel=1e-4)
    exported = timm.create_model(f"local-dir:{tmp_path / 'run/model'}", pretrained=True)
    assert same(exported.state_dict(), load_file(tmp_path / "run/weights/best.safetensors"))


def test_a_second_run_in_the_same_folder_is_refused(run):
    with pytest.raises(ValueError, match="--resume"):
        train(tiny(run))


def test_resuming_a_finished_run_changes_nothing(run):
    before = weights(run)
    train(tiny(run, resume=True, twin=None))
    assert same(before, weights(run))


@pytest.mark.parametrize("stop_at", [(0, 4), (1, 3)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_weights(run, tmp_path, monkeypatch, stop_at, accumulate):
    optimizer = OptimizerConfig(lr=0.05, warmup_epochs=1, accumulate=accumulate)
    if accumulate == 1:
        expected = weights(run)
    else:
        train(tiny(tmp_path / "whole", optimizer=optimizer))
        expected = weights(tmp_path / "whole")
        forget()
    config = tiny(tmp_path / "run", optimizer=optimizer)
    due = Loop._checkpoint_if_due

    def stop(self, epoch, done):
        self.signals.came = (epoch, done) >= stop_at
        due(self, epoch, done)

    monkeypatch.setattr(Loop, "_checkpoint_if_due", stop)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.undo()
    forget()
    random.random(), torch.rand(3)  # the resumed process stands elsewhere in its generators
    train(replace(config, resume=True))
    assert same(weights(tmp_path / "run"), expected)


def test_batches_depend_on_seed_epoch_and_position_only():
    data = load(replace(DATA, crop="pad4"), input_size=(1, 8, 8)).train
    batches = SeededBatches(data, seed=0)
    state = torch.random.get_rng_state()
    first = stack(batches.__getitems__([5, 1, 7]))[0]
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(10)
    batches.__getitems__([2, 3])
    assert torch.equal(first, stack(batches.__getitems__([5, 1, 7]))[0])
    batches.epoch = 1
    assert not torch.equal(first, stack(batches.__getitems__([5, 1, 7]))[0])


def test_validation_and_balance_draw_nothing_from_the_training_generator(tmp_path):
    config = tiny(tmp_path)
    session = session_of(config)
    loop = Loop(session, Log(session.accelerator, tmp_path, 10))
    state = torch.random.get_rng_state()
    first = loop._validate(session.method)
    loop._begin(0, resumed=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == loop._validate(session.method)
    assert 0 < float(session.method.balance) < 1


def test_auto_balance_is_the_clean_accuracy_of_the_auxiliary_branch(tmp_path):
    config = tiny(tmp_path)
    session = session_of(config)
    Loop(session, Log(session.accelerator, tmp_path, 10))._begin(0, resumed=False)
    x, y = companion(session, Balance).images
    session.method.eval()
    with torch.no_grad():
        expected = (session.method.clean_logits(x).argmax(-1) == y).float().mean()
    assert float(session.method.balance) == pytest.approx(float(expected), abs=1e-6)


def test_pretrained_statistics_are_honoured_and_new_models_take_pixels(tmp_path):
    config = tiny(tmp_path, model=ModelConfig(name="test_resnet"), data=replace(DATA, in_chans=3, image_size=32))
    model, data = build_model(config)
    assert model.pretrained_cfg["mean"] == (0.0, 0.0, 0.0)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.num_classes == data.num_classes == 10


@pytest.mark.parametrize("classes", [10, 12])
def test_a_pretrained_start_adapts_to_the_data(run, tmp_path, classes):
    """The finished run's model, to three channels and another number of classes."""
    data = replace(DATA, in_chans=3, image_size=16, num_classes=classes)
    config = tiny(tmp_path, data=data, model=ModelConfig(f"local-dir:{run / 'model'}", pretrained=True))
    model, _ = build_model(config)
    trained = load_file(run / "model" / "model.safetensors")
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], trained["layer1.0.conv1.weight"])
    assert torch.equal(model.state_dict()["fc.weight"], trained["fc.weight"]) == (classes == 10)
    assert model.conv1.in_channels == 3 and model.num_classes == classes
    assert model.pretrained_cfg["input_size"] == (3, 16, 16)
    assert model.pretrained_cfg["pool_size"] == (4, 4), "a quarter of 16, by what resnet20_cifar is registered with"


def test_the_weights_of_a_name_are_said_with_their_tag():
    names = {"resnet18": "resnet18.a1_in1k", "resnet20_cifar_arat": "resnet20_cifar_arat.cifar10_linf8"}
    names |= {name: name for name in ("hf-hub:someone/robust", "runs/standard", "resnet18.my-run")}
    assert {name: weights_name(name) for name in names} == names


@pytest.mark.parametrize("frozen", ["none", "main", "both"])
def test_fine_tuning_freezes_the_norms_that_are_asked_for(run, tmp_path, frozen):
    model = ModelConfig(f"local-dir:{run / 'model'}", pretrained=True, freeze_norms=frozen)
    average = AverageConfig(kind="ema", every=3, batches=2, decay=0.5)
    (result,) = train(tiny(tmp_path / "out", model=model, epochs=1, average=average))
    assert result.model == "resnet20_cifar arat", "the network, not where its first weights lay"
    facts = json.loads((tmp_path / "out/model/config.json").read_text())["training"]
    assert facts["started_from"] == model.name
    before = load_file(run / "model" / "model.safetensors")
    after = load_file(tmp_path / "out" / "weights" / "last.safetensors")
    for key in ("bn1.weight", "bn1.running_mean"):
        assert torch.equal(before[key], after[key]) == (frozen != "none"), key
    # The second branch starts as the first's copy.
    assert torch.equal(before["bn1.weight"], after["bn1.aux_bn.0.weight"]) == (frozen == "both")
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(name="resnet20_cifer")}, "resnet20_cifar"),
        ({"model": ModelConfig(name="resnet20_cifar", pretrained=True)}, "no weights for resnet20_cifar: set model"),
        ({"model": ModelConfig(name="resnet20_cifar", kwargs={"layer": [1]})}, "model.kwargs"),
        (
            {"model": ModelConfig("test_vit", kwargs={"img_size": [8, 16]}), "data": replace(DATA, image_size=None)},
            "model.kwargs.img_size is .8, 16.: images are square here",
        ),
        ({"model": ModelConfig("resnet20_cifar", kwargs={"num_classes": 5})}, "num_classes: the data decide it"),
        (
            {"model": ModelConfig("resnet20_cifar", kwargs={"checkpoint_path": "a"})},
            "checkpoint_path is no argument of",
        ),
        (
            {
                "teacher": ModelConfig("resnet18", kwargs={"features_only": True}),
                "method": ARATConfig(anchor="teacher"),
            },
            "teacher.kwargs.features_only is no argument",
        ),
        (
            {"model": ModelConfig("test_vit", kwargs={"dynamic_img_size": False})},
            "test_vit does not take images of 8 pixels .*: give model.kwargs.img_size=8, by which",
        ),
        ({"data": replace(DATA, batch_size=4096)}, "lower data.batch_size"),
        ({"optimizer": OptimizerConfig(name="adahessian")}, "adahessian needs second derivatives"),
        (
            {
                "model": replace(MODEL, freeze_norms="main"),
                "method": MadryConfig(),
                "attack": PGD(eps=0.1, steps=1, norm_mode="train"),
            },
            "attack.norm_mode=train normalises by the batch's statistics",
        ),
        ({"analysis": AnalysisConfig(every=5, layers=("layer9",))}, "layer9"),
        ({"data": replace(DATA, name="digit")}, "digits"),
        ({"method": ARATConfig(layers=("layer7",))}, "did you mean 'layer"),
        ({"model": ModelConfig(name="test_vit"), "data": replace(DATA, image_size=160, in_chans=3)}, "split_norm"),
    ],
)
def test_bad_settings_are_errors_that_name_the_way_out(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        session_of(tiny(tmp_path, **changes))


def test_what_comes_after_the_last_epoch_is_said():
    late = {"optimizer": OptimizerConfig(warmup_epochs=3), "attack": PGD(warmup_epochs=4)}
    notes = TrainConfig(epochs=3, awp=AWPConfig(gamma=0.01, start_epoch=3), **late).notes()
    assert [note.split("=")[0] for note in notes] == [
        "WARNING: optimizer.warmup_epochs",
        "WARNING: attack.warmup_epochs",
        "WARNING: awp.start_epoch",
    ]
    assert not TrainConfig(epochs=5, awp=AWPConfig(start_epoch=7), **late).notes()
    with pytest.raises(ValueError, match="warmup_epochs=3 leaves no epoch of epochs=3"):
        TrainConfig(epochs=3, optimizer=OptimizerConfig(warmup_epochs=3, warmup_prefix=True))
    with pytest.raises(ValueError, match="warmup_epochs=-1 is not at least 0"):
        OptimizerConfig(warmup_epochs=-1)


def test_norms_that_are_frozen_at_random_weights_are_said():
    frozen = ModelConfig(freeze_norms="main")
    assert "model.pretrained" in TrainConfig(model=frozen).notes()[0]
    assert not TrainConfig(model=replace(frozen, pretrained=True)).notes()


def test_a_twin_s_mistake_is_an_error_before_the_training_and_each_gets_the_teacher_that_it_needs(tmp_path):
    other = ModelConfig(name="resnet20_cifar", kwargs=MODEL.kwargs)
    with pytest.raises(ValueError, match="LBGAT needs a second network"):
        train(tiny(tmp_path / "out", twin=LBGATConfig()))
    with pytest.raises(ValueError, match="ARAT with these settings has no use for a teacher"):
        train(tiny(tmp_path / "out", teacher=other))
    assert not (tmp_path / "out").exists()
    with_twin = tiny(tmp_path / "out", teacher=other, twin=LBGATConfig())
    assert [each.teacher.name for each in both(with_twin)] == ["", "resnet20_cifar"]
    with_twin = tiny(tmp_path / "out", teacher=other, method=LBGATConfig(), twin=StandardConfig())
    assert [each.teacher.name for each in both(with_twin)] == ["resnet20_cifar", ""]


def test_a_frozen_teacher_of_random_weights_is_said(tmp_path, capsys):
    teacher = ModelConfig(name="resnet20_cifar", kwargs=MODEL.kwargs)
    short = {"epochs": 1, "evaluation": replace(tiny(tmp_path).evaluation, attacks=("clean",))}
    train(tiny(tmp_path / "hat", teacher=teacher, method=HATConfig(), **short))
    assert "WARNING: the teacher resnet20_cifar has random weights" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    log = Log(Accelerator(), tmp_path, every=1)
    with pytest.raises(ValueError, match="lower optimizer.lr"):
        log.step({"loss": torch.tensor(float("nan"))}, images=1, lr=0.1, step=1)


def test_a_run_is_called_alike_when_it_is_evaluated_again(run):
    results = json.loads((run / "results.json").read_text())
    _, name = open_model(run)
    assert name == results["model"] == "resnet20_cifar arat"
    assert open_model(run / "model")[1] == str(run / "model")


def test_redrawn_balance_images_differ_by_epoch_and_come_again(tmp_path):
    """The official code measures on another part of the training images, augmented anew, before each epoch."""
    config = tiny(tmp_path, method=ARATConfig(), balance=BalanceConfig(images="augmented", count=64, redraw=True))
    balance = companion(session_of(config), Balance)
    first, second = balance._drawn(0), balance._drawn(1)
    assert first[0].shape == (64, 1, 8, 8) and not torch.equal(first[1], second[1])
    for one, other in zip(first, balance._drawn(0), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("batch_size", "drop_last", "steps"), [(128, True, 10), (128, False, 11), (668, False, 2)])
def test_the_images_that_do_not_fill_a_batch_are_left_out_or_not(tmp_path, batch_size, drop_last, steps):
    """Digits has 1,437 training images, of which 100 are held out: 1,337."""
    data = replace(DATA, batch_size=batch_size, drop_last=drop_last)
    if batch_size == 668:
        with pytest.raises(ValueError, match="a last batch of 1 of 1337 training images"):
            session_of(tiny(tmp_path, data=data))
        return
    session = session_of(tiny(tmp_path, data=data))
    assert len(session.loader) == len(list(session.loader)) == steps


def test_a_setting_that_a_checkpoint_does_not_know_counts_as_its_default(tmp_path):
    """A run goes on under a newer version, which has more settings."""
    config = tiny(tmp_path, method=ARATConfig())
    there = identity(session_of(config))
    for key in ("model.init", "method.noisy_clean", "balance.redraw"):
        del there["settings"][key]
    check_identity(there, identity(session_of(config)), config)
    other = replace(config, balance=BalanceConfig(redraw=True))
    with pytest.raises(ValueError, match="balance.redraw was False and is True"):
        check_identity(there, identity(session_of(other)), other)
    here = identity(session_of(config)) | {"precision": "fp16"}
    with pytest.raises(ValueError, match="the precision: no then, fp16 now"):
        check_identity(there, here, config)
    del there["precision"]
    check_identity(there, here, config)
