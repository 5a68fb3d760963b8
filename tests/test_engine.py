"""Training in one process: what a run leaves, resuming, averaging, and the errors on the way."""

import errno
import json
import random
from dataclasses import replace
from pathlib import Path

import helpers_engine
import pytest
import timm
import torch
from accelerate import Accelerator
from helpers_engine import DATA, MODEL, forget, fresh_accelerate, same  # noqa: F401  # a fixture
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm_arat.engine.average import Average, reestimate
from timm_arat.engine.prepare import build_model, build_optimizer, build_schedule, prepare

from timm_arat import PGD, in_pixels
from timm_arat.config import read
from timm_arat.data import load
from timm_arat.engine import checkpoint
from timm_arat.engine.batches import SeededBatches, stack
from timm_arat.engine.config import VARIANTS, AverageConfig, ModelConfig, OptimizerConfig, TrainConfig
from timm_arat.engine.log import Log
from timm_arat.engine.loop import Interrupted, Loop
from timm_arat.engine.train import train
from timm_arat.evaluation._model import fingerprint, open_model
from timm_arat.methods import ARAT, ARATConfig, MadryConfig, StandardConfig, TRADESConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    """Two epochs of ARAT."""
    arat = ARATConfig(attack=PGD(eps=0.1, steps=1), weight=5.0)
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
    words += (
        "--model.kwargs.channels [8,16] --method.attack.steps 1 --evaluation.val_steps 1 --evaluation.attacks [clean]"
    )
    config = read(TrainConfig, words.split(), variants=VARIANTS, prog="x", description="")
    assert config.method == TRADESConfig(PGD(eps=0.15, steps=1, loss="kl"))
    (result,) = train(config)
    assert result.model == "resnet20_cifar trades"
    (row,) = [json.loads(line) for line in (tmp_path / "run/summary.jsonl").read_text().splitlines()]
    assert row["kl"] > 0 and row["zero_grad"] == 0
    assert row["loss"] == pytest.approx(row["ce_clean"] + 6 * row["kl"], rel=1e-4)
    exported = timm.create_model(f"local-dir:{tmp_path / 'run/model'}", pretrained=True)
    assert same(exported.state_dict(), load_file(tmp_path / "run/weights/best.safetensors"))


def test_a_second_run_in_the_same_folder_is_refused(run):
    with pytest.raises(ValueError, match="--resume true"):
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


def test_a_damaged_checkpoint_is_an_error_that_names_it(run, tmp_path):
    config = tiny(tmp_path)
    session = prepare(config, tmp_path)
    for name, damage in {"truncated": lambda b: b[: len(b) // 2], "foreign": lambda b: b"PK\x03\x04" + b}.items():
        folder = tmp_path / name
        path = checkpoint.save(session.accelerator, folder, 1, 0, keep=2)
        file = path / "model.safetensors"
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(ValueError, match="cannot be resumed.*start afresh"):
            checkpoint.load(session.accelerator, path)


def test_a_checkpoint_of_another_method_is_an_error(tmp_path):
    session = prepare(tiny(tmp_path), tmp_path)
    path = checkpoint.save(session.accelerator, tmp_path / "checkpoints", 1, 0, keep=2)
    forget()
    other = prepare(tiny(tmp_path, method=MadryConfig()), tmp_path)
    with pytest.raises(ValueError, match="cannot be resumed"):
        checkpoint.load(other.accelerator, path)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    session = prepare(tiny(tmp_path), tmp_path)
    good = checkpoint.save(session.accelerator, tmp_path, 1, 0, keep=1)
    before = {path.name: path.read_bytes() for path in good.iterdir()}

    def full(folder, **_):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session.accelerator, "save_state", full)
    with pytest.raises(OSError, match="no space for a checkpoint"):
        checkpoint.save(session.accelerator, tmp_path, 2, 0, keep=1)
    assert checkpoint.newest(tmp_path) == good
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before
    assert not list(tmp_path.glob(".*.partial"))


def test_a_run_on_a_full_disk_says_how_to_go_on(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("timm_arat.engine.weights.save_file", full)
    with pytest.raises(OSError, match="--resume true goes on"):
        train(tiny(tmp_path))


def test_an_old_checkpoint_is_pruned_only_after_the_new_one_stands(tmp_path, monkeypatch):
    session = prepare(tiny(tmp_path), tmp_path)
    first = checkpoint.save(session.accelerator, tmp_path, 1, 0, keep=1)
    real = session.accelerator.save_state

    def watch(folder, **settings):
        assert first.exists()
        real(folder, **settings)
        assert first.exists()

    monkeypatch.setattr(session.accelerator, "save_state", watch)
    second = checkpoint.save(session.accelerator, tmp_path, 2, 5, keep=1)
    assert not first.exists()
    assert checkpoint.newest(tmp_path) == second
    assert checkpoint.load(session.accelerator, second) == (2, 5)


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
    session = prepare(config, tmp_path)
    loop = Loop(config, session, tmp_path, Log(session.accelerator, tmp_path, 10))
    state = torch.random.get_rng_state()
    first = loop._validate(session.method)
    loop._begin(0, resumed=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == loop._validate(session.method)
    assert 0 < float(session.method.balance) < 1


def test_auto_balance_is_the_clean_accuracy_of_the_auxiliary_branch(tmp_path):
    config = tiny(tmp_path)
    session = prepare(config, tmp_path)
    Loop(config, session, tmp_path, Log(session.accelerator, tmp_path, 10))._begin(0, resumed=False)
    x, y = session.balance
    session.method.eval()
    with torch.no_grad():
        expected = (session.method.clean_logits(x).argmax(-1) == y).float().mean()
    assert float(session.method.balance) == pytest.approx(float(expected), abs=1e-6)


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
    average = Average(method, AverageConfig(kind=kind, decay=0.75, start_epoch=1, every=2))
    assert not average.is_filled
    values = []
    for step in range(1, 9):
        with torch.no_grad():
            model.fc.bias.fill_(float(step))
        average.step(method, epoch=0 if step < 3 else 1, step=step)
        values.append(float(step))
    found = float(average.average.module.model.fc.bias.detach()[0])
    if kind == "swa":
        assert found == pytest.approx(sum([4, 6, 8]) / 3)
    else:
        expected = 3.0
        for value in values[3:]:
            expected = 0.75 * expected + 0.25 * value
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_averaged_run_evaluates_and_exports_the_average(tmp_path, kind):
    train(tiny(tmp_path, average=AverageConfig(kind=kind, every=3, batches=2, decay=0.5), epochs=1))
    trained = load_file(checkpoint.newest(tmp_path / "checkpoints") / "model.safetensors")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert not torch.equal(trained["pixels.model.conv1.weight"], exported["conv1.weight"])
    assert int(exported["bn1.num_batches_tracked"]) == 2


def test_pretrained_statistics_are_honoured_and_new_models_take_pixels(tmp_path):
    config = tiny(tmp_path, model=ModelConfig(name="test_resnet"), data=replace(DATA, in_chans=3, image_size=32))
    model, data = build_model(config)
    assert model.pretrained_cfg["mean"] == (0.0, 0.0, 0.0)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.num_classes == data.num_classes == 10


@pytest.mark.parametrize("classes", [10, 5])
def test_a_pretrained_start_adapts_to_the_data(run, tmp_path, classes):
    """The finished run's model, to three channels and another number of classes."""
    data = replace(DATA, in_chans=3, image_size=16)
    config = tiny(tmp_path, data=data, model=ModelConfig(f"local-dir:{run / 'model'}", pretrained=True))
    config = replace(config, model=replace(config.model, kwargs={"num_classes": classes}))
    model, _ = build_model(config)
    trained = load_file(run / "model" / "model.safetensors")
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], trained["layer1.0.conv1.weight"])
    assert torch.equal(model.state_dict()["fc.weight"], trained["fc.weight"]) == (classes == 10)
    assert model.conv1.in_channels == 3 and model.num_classes == classes
    assert model.pretrained_cfg["input_size"] == (3, 16, 16)


@pytest.mark.parametrize("frozen", ["none", "main", "both"])
def test_fine_tuning_freezes_the_norms_that_are_asked_for(run, tmp_path, frozen):
    model = ModelConfig(f"local-dir:{run / 'model'}", pretrained=True, freeze_norms=frozen)
    average = AverageConfig(kind="ema", every=3, batches=2, decay=0.5)
    train(tiny(tmp_path / "out", model=model, epochs=1, average=average))
    before = load_file(run / "model" / "model.safetensors")
    after = load_file(tmp_path / "out" / "weights" / "last.safetensors")
    for key in ("bn1.weight", "bn1.running_mean"):
        assert torch.equal(before[key], after[key]) == (frozen != "none"), key
    # The second branch starts as the first's copy.
    assert torch.equal(before["bn1.weight"], after["bn1.aux_bn.0.weight"]) == (frozen == "both")
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_every_parameter_is_in_the_optimizer_and_the_schedule_warms_up(tmp_path):
    config = tiny(tmp_path, optimizer=OptimizerConfig(lr=0.1, warmup_epochs=1, warmup_lr=0.01))
    session = prepare(config, tmp_path)
    in_groups = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
    assert in_groups == {id(p) for p in session.method.parameters() if p.requires_grad}
    rates = []
    for step in range(20):
        session.schedule.step_update(step)
        rates.append(session.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01)
    assert rates[: len(session.loader)] == sorted(rates[: len(session.loader)])
    assert max(rates) > 4 * rates[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(name="resnet20_cifer")}, "resnet20_cifar"),
        ({"model": ModelConfig(name="resnet20_cifar", kwargs={"layer": [1]})}, "model.kwargs"),
        ({"data": replace(DATA, batch_size=4096)}, "lower data.batch_size"),
        ({"data": replace(DATA, name="digit")}, "digits"),
        ({"method": ARATConfig(layers=("layer7",))}, "did you mean 'layer"),
        ({"model": ModelConfig(name="test_vit"), "data": replace(DATA, image_size=160, in_chans=3)}, "split_norm"),
    ],
)
def test_bad_settings_are_errors_that_name_the_way_out(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(tiny(tmp_path, **changes), tmp_path)


def test_unknown_optimizer_and_schedule_are_errors(tmp_path):
    method = ARAT(timm.create_model("resnet20_cifar", layers=(1, 1), channels=(8, 8)))
    with pytest.raises(ValueError, match="adamw"):
        build_optimizer(tiny(tmp_path, optimizer=OptimizerConfig(name="adamww")), method)
    good = tiny(tmp_path)
    with pytest.raises(ValueError, match="cosine"):
        build_schedule(
            replace(good, optimizer=OptimizerConfig(schedule="cosinus")), build_optimizer(good, method), updates=3
        )


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_a_fused_optimizer_steps_as_the_plain_one(tmp_path, name):
    """lion has no fused form in timm; asked in `kwargs`, the others are plain too."""
    after = []
    for kwargs in ({}, {"fused": False}) if name != "lion" else ({}, {}):
        torch.manual_seed(0)
        method = ARAT(timm.create_model("resnet20_cifar", layers=(1, 1), channels=(8, 8)))
        settings = OptimizerConfig(name=name, lr=0.01, kwargs=kwargs)
        optimizer = build_optimizer(tiny(tmp_path, optimizer=settings), method)
        assert optimizer.defaults.get("fused", False) == (name != "lion" and not kwargs)
        for _ in range(3):
            for p in method.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        after.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
    assert torch.allclose(*after, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    log = Log(Accelerator(), tmp_path, every=1)
    with pytest.raises(ValueError, match="lower optimizer.lr"):
        log.step({"loss": torch.tensor(float("nan"))}, images=1, lr=0.1, step=1)


def test_a_run_is_called_alike_when_it_is_evaluated_again(run):
    results = json.loads((run / "results.json").read_text())
    _, name = open_model(run)
    assert name == results["model"] == "resnet20_cifar arat"
    assert open_model(run / "model")[1] == str(run / "model")
