"""The protocol of companions: the order of the hooks, one of one's own, and what is not asked for is not there."""

from dataclasses import replace
from pathlib import Path

import helpers_engine
import pytest
import torch
from helpers_engine import forget, fresh_accelerate, rows, same, session_of  # noqa: F401  # a fixture
from safetensors.torch import load_file

from timm_arat.engine.companions import COMPANIONS, Companion
from timm_arat.engine.config import AnalysisConfig, AverageConfig, AWPConfig, GuardConfig, TrainConfig
from timm_arat.engine.train import train
from timm_arat.methods import ARATConfig, MadryConfig, StandardConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    return helpers_engine.tiny(folder, **{"epochs": 1, "mixed_precision": "no", **changes})


class Conflict(Companion):
    """The cosine between the gradients of the two cross-entropies, as a user would write it."""

    cosine = 0.0

    @classmethod
    def wanted(cls, config, method):
        return True

    def around_step(self, batch, x, x_adv):
        buffers = [(b, b.clone()) for b in self.method.buffers()]
        losses = self.method.terms(x, batch.y, x_adv).losses
        weights = [p for name, p in self.method.model.named_parameters() if name.startswith("conv1")]
        a, b = (torch.autograd.grad(losses[name], weights, retain_graph=True)[0] for name in ("ce_adv", "ce_clean"))
        self.cosine = float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))
        for buffer, value in buffers:
            buffer.copy_(value)
        return super().around_step(batch, x, x_adv)

    def row(self):
        return {"gradient_cosine": self.cosine}


def test_a_companion_of_ones_own_logs_and_leaves_the_training_bitwise_as_it_is(tmp_path):
    config = tiny(tmp_path / "with", method=ARATConfig(weight=5.0))
    train(config, companions=[Conflict])
    forget()
    train(replace(config, output=str(tmp_path / "without")))
    found, expected = (load_file(tmp_path / name / "weights/last.safetensors") for name in ("with", "without"))
    assert same(found, expected)
    (row,) = rows(tmp_path / "with")
    assert 0 < abs(row["gradient_cosine"]) <= 1
    assert "gradient_cosine" not in rows(tmp_path / "without")[0]


HOOKS = "begin attack start around_step after_update candidate row before_save end".split()


def telling(name: str, told: list[tuple[str, str]]) -> type[Companion]:
    """A companion that tells of each of its hooks."""

    def tell(hook):
        def method(self, *args):
            told.append((name, hook))
            return getattr(Companion, hook)(self, *args)

        return method

    wanted = classmethod(lambda cls, config, method: True)
    return type(name, (Companion,), {"wanted": wanted, **{hook: tell(hook) for hook in HOOKS}})


def test_hooks_are_called_in_the_order_of_the_protocol_and_of_the_companions(tmp_path):
    told: list[tuple[str, str]] = []
    config = tiny(tmp_path, checkpoint_minutes=60.0)
    train(config, companions=[telling("first", told), telling("second", told)])
    step = ["attack", "start", "around_step", "after_update"]
    updates = told.count(("first", "after_update"))
    assert updates > 1
    order = ["begin", *step * updates, "row", "candidate", "before_save", "end"]
    assert told == [(name, hook) for hook in order for name in ("first", "second")]


def test_the_first_start_that_a_companion_gives_is_taken(tmp_path):
    told: list[tuple[str, str]] = []
    quiet, starting, late = telling("quiet", told), telling("starting", told), telling("late", told)
    starting.start = lambda self, batch: batch.x
    train(tiny(tmp_path), companions=[quiet, starting, late])
    assert ("quiet", "start") in told and ("late", "start") not in told


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"method": MadryConfig()}, []),
        ({"method": ARATConfig()}, ["Balance"]),
        ({"method": ARATConfig(auto_balance=False)}, []),
        ({"guard": GuardConfig(every=1)}, ["Guard"]),
        ({"awp": AWPConfig(gamma=0.01)}, ["AWP"]),
        ({"average": AverageConfig(kind="ema")}, ["Average"]),
        ({"analysis": AnalysisConfig(every=1)}, ["Analysis"]),
        ({"warm_start": True}, ["WarmStart"]),
        ({"method": StandardConfig(), "warm_start": True, "guard": GuardConfig(every=1)}, []),
        (
            {
                "method": ARATConfig(), "warm_start": True, "guard": GuardConfig(every=1), "awp": AWPConfig(gamma=0.01),
                "average": AverageConfig(kind="ema"), "analysis": AnalysisConfig(every=1),
            },
            [kind.__name__ for kind in COMPANIONS],
        ),
    ],
)  # fmt: skip
def test_a_companion_that_is_not_asked_for_is_not_there(tmp_path, changes, names):
    session = session_of(tiny(tmp_path, **changes))
    assert [type(each).__name__ for each in session.companions] == names
