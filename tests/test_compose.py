"""Every method in one short run with adversarial weight perturbation and an average of the weights."""

import helpers_engine
import pytest
import timm
import torch
from helpers_engine import fresh_accelerate, rows, same  # noqa: F401  # a fixture
from safetensors.torch import load_file

from timm_arat import PGD
from timm_arat.engine.config import AverageConfig, AWPConfig, ModelConfig, TrainConfig, ValidationConfig
from timm_arat.engine.train import train, twin_of
from timm_arat.methods import CONFIGS, ARATConfig, DAJATConfig, HATConfig, MadryConfig, method_class

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

MODEL = ModelConfig(name="resnet20_cifar", kwargs={"layers": [1, 1], "channels": [4, 8]})
DATA = helpers_engine.DATA
CASES = {name: kind() for name, kind in CONFIGS.items()} | {"arat with a teacher": ARATConfig(anchor="teacher")}


def config_of(folder, method, **changes) -> TrainConfig:
    """Two steps, the second of which goes into an average that the first has begun."""
    (name,) = (name for name, kind in CONFIGS.items() if type(method) is kind)
    needed = method_class(name).needs_teacher(method)
    return helpers_engine.tiny(
        folder,
        **{
            "data": helpers_engine.replace(DATA, batch_size=600),
            "model": MODEL,
            "teacher": MODEL if needed else ModelConfig(name=""),
            "method": method,
            "attack": PGD(eps=0.1, steps=1),
            "awp": AWPConfig(gamma=0.005),
            "average": AverageConfig(kind="ema", decay=0.5, batches=1),
            "validation": ValidationConfig(steps=1),
            "epochs": 1,
            **changes,
        },
    )


@pytest.mark.parametrize("name", CASES)
def test_a_method_trains_under_awp_and_its_average_is_exported(name, tmp_path):
    (result,) = train(config_of(tmp_path, CASES[name]))
    (row,) = rows(tmp_path)
    assert torch.isfinite(torch.tensor(row["loss"])) and "clean" in str(result)
    saved = load_file(tmp_path / "weights" / "best.safetensors")
    assert not any("teacher" in key or "predictor" in key for key in saved)
    exported = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert same(exported.state_dict(), {key: value for key, value in saved.items() if "aux_bn" not in key})
    assert type(exported) is type(timm.create_model("resnet20_cifar"))


@pytest.mark.parametrize("method", [HATConfig(), DAJATConfig()], ids=lambda method: type(method).__name__)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(method, tmp_path):
    train(config_of(tmp_path / "whole", method, epochs=2))
    helpers_engine.forget()
    first = config_of(tmp_path / "parts", method, epochs=2)
    Stop.at = 1
    with pytest.raises(RuntimeError, match="stopped"):
        train(first, companions=[Stop])
    helpers_engine.forget()
    Stop.at = None
    train(helpers_engine.replace(first, resume=True), companions=[Stop])
    whole, parts = (load_file(tmp_path / name / "weights" / "last.safetensors") for name in ("whole", "parts"))
    assert same(whole, parts)


class Stop(helpers_engine.Companion):
    """Ends the run, as a crash would, at the beginning of epoch `at`."""

    at: int | None = None

    @classmethod
    def wanted(cls, config, method):
        return True

    def begin(self, epoch, resumed):
        if epoch == self.at:
            raise RuntimeError("stopped")


def test_a_twin_that_has_no_use_for_the_teacher_trains_without(tmp_path):
    config = config_of(tmp_path, HATConfig(), twin=MadryConfig())
    assert twin_of(config).teacher.name == "" and config.teacher.name
    with pytest.raises(ValueError, match=r"teacher.freeze_norms: it is for the network that is trained"):
        helpers_engine.replace(config, teacher=helpers_engine.replace(config.teacher, freeze_norms="main"))
    config = config_of(tmp_path, HATConfig(), twin=ARATConfig(anchor="teacher"))
    assert twin_of(config).teacher == config.teacher


def test_a_recipe_without_the_teacher_that_its_method_needs_says_which_setting_names_it(tmp_path):
    with pytest.raises(ValueError, match="HAT needs a second network: .*teacher.name"):
        train(config_of(tmp_path, HATConfig(), teacher=ModelConfig(name="")))
