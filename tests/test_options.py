"""Options of a run that no other file names: trackers, clipping, selection, validation images, and the two threats."""

import json
from pathlib import Path

import helpers_engine
import pytest
import torch
from accelerate import tracking
from helpers_engine import MODEL, companion, forget, fresh_accelerate, rows, session_of  # noqa: F401  # a fixture
from safetensors.torch import load_file

from timm_arat.attacks import PGD
from timm_arat.config import read
from timm_arat.engine.best import best_epoch, score
from timm_arat.engine.companions.balance import Balance
from timm_arat.engine.config import (
    BalanceConfig,
    GuardConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from timm_arat.engine.loop import Loop
from timm_arat.engine.recipe import VARIANTS, read_recipe
from timm_arat.engine.train import train
from timm_arat.methods import ARATConfig, StandardConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    """One epoch of plain training."""
    return helpers_engine.tiny(folder, **{"method": StandardConfig(), "epochs": 1, **changes})


@pytest.mark.filterwarnings("ignore:`log_with=")  # accelerate's, before our error
def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    with pytest.raises(ValueError, match="trackers: tensorboard is not installed"):
        train(tiny(tmp_path, trackers=("tensorboard",)))


def test_a_tracker_gets_terms_rates_and_validation(tmp_path, monkeypatch):
    class Lines(tracking.GeneralTracker):
        name, requires_logging_directory = "lines", True
        tracker = None

        def __init__(self, run_name, logging_dir, **_):
            super().__init__()
            self.file = Path(logging_dir) / f"{run_name}.jsonl"
            self.file.parent.mkdir(parents=True, exist_ok=True)

        def store_init_configuration(self, values):
            self.log(values, step=0)

        def log(self, values, step=None, **_):
            with self.file.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "lines", Lines)
    train(tiny(tmp_path, trackers=("lines",), log_every=5))
    told = [json.loads(line) for line in (tmp_path / "trackers/timm_arat.jsonl").read_text().splitlines()]
    assert told[0] == {"step": 0, "method": "standard", "model": MODEL.name}
    steps = [line for line in told if "train/loss" in line]
    assert [line["step"] for line in steps] == [5, 10] and all(line["train/lr"] > 0 for line in steps)
    (epoch,) = [line for line in told if "epoch/val_clean" in line]
    (row,) = rows(tmp_path)
    assert {f"epoch/{name}": value for name, value in row.items()} == {k: v for k, v in epoch.items() if k != "step"}


def test_clip_grad_bounds_the_gradient_of_each_update(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def watch(self, *args, **kwargs):
        grads = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat(grads).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watch)
    for clip in (None, 0.1):
        train(tiny(tmp_path / str(clip), optimizer=OptimizerConfig(lr=0.05, clip_grad=clip, accumulate=2)))
        forget()
    half = len(norms) // 2
    assert half == 5 and min(norms[:half]) > 0.2 and norms[half:] == pytest.approx([0.1] * half, rel=1e-3)


@pytest.mark.parametrize("images", ["plain", "augmented"])
def test_balance_is_measured_on_plain_or_augmented_images(tmp_path, images):
    data = helpers_engine.replace(helpers_engine.DATA, crop="pad4")
    settings = BalanceConfig(images=images, count=50)
    session = session_of(tiny(tmp_path, method=ARATConfig(), data=data, balance=settings))
    x, y = companion(session, Balance).images
    train_images = session.data.train
    plain = torch.stack([train_images.plain()[i][0] for i in range(len(train_images))]).flatten(1)
    known = [bool((plain == image).all(1).any()) for image in x.flatten(1)]
    assert len(x) == len(y) == 50 and y.bincount().min() == 5
    assert all(known) if images == "plain" else sum(known) < 25


@pytest.mark.parametrize(("select", "epoch"), [("sum", 2), ("robust", 3), ("clean", 1)])
def test_the_best_epoch_is_best_at_what_is_selected(tmp_path, monkeypatch, select, epoch):
    found = [(0.9, 0.1), (0.7, 0.5), (0.5, 0.6)]
    monkeypatch.setattr(
        Loop,
        "_validate",
        lambda self, _: dict(zip(("val_clean", "val_robust"), found[self.session.images.epoch], strict=True)),
    )
    kept = []
    finish = Loop._finish

    def watch(self, number):
        finish(self, number)
        kept.append(load_file(self.folder / "weights/last.safetensors"))

    monkeypatch.setattr(Loop, "_finish", watch)
    train(tiny(tmp_path, epochs=3, validation=ValidationConfig(select=select)))
    chosen = load_file(tmp_path / "weights/best.safetensors")
    assert [helpers_engine.same(chosen, each) for each in kept] == [n == epoch for n in (1, 2, 3)]
    assert best_epoch(rows(tmp_path), select) == epoch


def test_without_validation_the_newest_epoch_is_the_best():
    assert [score({"epoch": n}, "sum") for n in (1, 2)] == [1.0, 2.0]


def test_validation_takes_the_images_that_it_is_told(tmp_path):
    x, y = session_of(tiny(tmp_path, validation=ValidationConfig(images=40))).validation
    assert len(x) == len(y) == 40 and y.bincount().min() == y.bincount().max() == 4
    forget()
    assert len(session_of(tiny(tmp_path)).validation[1]) == 100


TINY = (
    "--config digits --twin null --method.name standard --epochs 1 --threads 1 --model.kwargs.channels [8,16] "
    "--attack.steps 1 --validation.steps 1 --evaluation.attacks [clean]"
)


@pytest.mark.parametrize(("words", "tested"), [("", 4 / 255), ("--evaluation.eps 2/255", 2 / 255)])
def test_the_training_threat_is_that_of_validation_and_test_unless_told(tmp_path, monkeypatch, words, tested):
    seen = []
    robust = "timm_arat.engine.loop.robust_accuracy"
    monkeypatch.setattr(robust, lambda accelerator, model, attack, *_: seen.append(attack) or 0.5)
    words = f"{TINY} --attack.eps 4/255 {words} --output {tmp_path / 'run'}"
    config = read(TrainConfig, words.split(), variants=VARIANTS, prog="x", description="")
    (result,) = train(config)
    assert seen == [PGD(eps=4 / 255, steps=1)]
    threat = json.loads((tmp_path / "run/results.json").read_text())["threat"]
    assert threat["eps"] == result.eps == pytest.approx(tested) and threat["norm"] == "linf"


@pytest.mark.parametrize("every", [0, 4])
@pytest.mark.parametrize("name", ["resnet20_cifar", "test_resnet"])
def test_gradient_checkpointing_goes_with_split_norms_validation_and_a_guard(tmp_path, name, every):
    model = MODEL if name == MODEL.name else helpers_engine.ModelConfig(name)
    data = helpers_engine.DATA if name == MODEL.name else helpers_engine.replace(helpers_engine.DATA, image_size=32)
    guard = GuardConfig(every=every, steps=2, images=32)
    settings = {"method": ARATConfig(weight=5.0), "data": data, "guard": guard, "epochs": 1}
    last = []
    for checkpointing in (False, True):
        model = helpers_engine.replace(model, checkpointing=checkpointing)
        train(tiny(tmp_path / str(checkpointing), model=model, **settings))
        last.append(rows(tmp_path / str(checkpointing))[-1])
        forget()
    # Attacks on a network that checkpoints are not folded, so the two trainings part by rounding.
    assert last[0]["loss"] == pytest.approx(last[1]["loss"], rel=0.03)
    assert {"val_clean", "val_robust"} <= last[1].keys() and ("guard_robust" in last[1]) == bool(every)


@pytest.mark.parametrize(("recipe", "section"), [("finetune", "model"), ("cifar10_resnet20_hat", "teacher")])
def test_a_recipe_that_starts_from_weights_does_so_from_another_checkpoint_too(recipe, section, capsys):
    """Its arguments belong to the network that it named; that it starts from trained weights is what the recipe is."""
    found = getattr(read_recipe(recipe, f"--{section}.name", "runs/mine"), section)
    assert found.pretrained and found.kwargs == {} and "pretrained" not in capsys.readouterr().err
    assert not getattr(read_recipe(recipe, f"--{section}.pretrained", "false"), section).pretrained
