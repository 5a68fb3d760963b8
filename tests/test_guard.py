"""Guarded single-step training: a collapse is noticed, undone and trained away, and nothing else changes."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import helpers_engine
import pytest
import torch
from helpers_engine import DATA, companion, forget, fresh_accelerate, rows, same, session_of  # noqa: F401  # a fixture
from safetensors.torch import load_file

from timm_arat import PGD
from timm_arat.config import read, recipes
from timm_arat.engine import checkpoint
from timm_arat.engine.companions.average import Average
from timm_arat.engine.companions.guard import Guard
from timm_arat.engine.config import (
    AverageConfig,
    GuardConfig,
    OptimizerConfig,
    TrainConfig,
)
from timm_arat.engine.log import Log
from timm_arat.engine.loop import Interrupted, Loop
from timm_arat.engine.recipe import VARIANTS
from timm_arat.engine.train import train
from timm_arat.methods import AdvPropConfig, ARATConfig, LBGATConfig, Madry, MadryConfig, StandardConfig

SINGLE = PGD(eps=0.1, steps=1, step_size=0.125)
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    """Two epochs under a guard."""
    guard = GuardConfig(every=3, steps=4, images=64, recover=5)
    return helpers_engine.tiny(folder, **{"attack": SINGLE, "guard": guard, **changes})


def script(monkeypatch, accuracies: dict[int, float]) -> None:
    """The guard measures `accuracies` by optimizer step."""
    after = Guard.after_update

    def told(self, update, epoch):
        self.now = update
        after(self, update, epoch)

    monkeypatch.setattr(Guard, "after_update", told)
    monkeypatch.setattr(Guard, "_measure", lambda self: accuracies[self.now])


def follow(monkeypatch) -> SimpleNamespace:
    """What a run did: the attack of each batch, and the state after each optimizer step and the guard's watch."""
    seen = SimpleNamespace(attacks=[], weights={}, optimizer={}, rates={})
    perturb, after = Madry.perturb, Guard.after_update

    def attacked(self, x, y, start=None, attack=None):
        seen.attacks.append(attack)
        return perturb(self, x, y, start, attack)

    def watched(self, update, epoch):
        after(self, update, epoch)
        seen.weights[update] = deepcopy(dict(self.method.state_dict()))
        seen.optimizer[update] = deepcopy(self.optimizer.state_dict()["state"])
        seen.rates[update] = self.optimizer.param_groups[0]["lr"]

    monkeypatch.setattr(Madry, "perturb", attacked)
    monkeypatch.setattr(Guard, "after_update", watched)
    return seen


def run(config: TrainConfig) -> Guard | None:
    session = session_of(config)
    log = Log(session.accelerator, session.folder, 10)
    newest = checkpoint.newest(session.folder / "checkpoints") if config.resume else None
    Loop(session, log, checkpoint.load(session, log, newest) if newest else None).run()
    return companion(session, Guard) if config.guard.every else None


# 0.47 is within the tolerance of the best, 0.4 is neither worth going back to nor a collapse.
COLLAPSE = {3: 0.5, 6: 0.47, 9: 0.4, 12: 0.1, 15: 0.3, 18: 0.5, 21: 0.5}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_collapse_goes_back_and_is_trained_away_with_more_steps(tmp_path, monkeypatch, capsys, accumulate):
    script(monkeypatch, COLLAPSE)
    seen = follow(monkeypatch)
    optimizer = OptimizerConfig(lr=0.05, accumulate=accumulate)
    guard = run(tiny(tmp_path / "run", optimizer=optimizer, epochs=2 * accumulate))
    updates = len(seen.weights)
    assert updates >= 18
    assert same(seen.weights[12], seen.weights[6]) and same(seen.optimizer[12], seen.optimizer[6])
    assert any(name.endswith("running_var") for name in seen.weights[6])
    assert all("momentum_buffer" in state for state in seen.optimizer[6].values()) and seen.optimizer[6]
    assert not same(seen.weights[13], seen.weights[7])
    assert seen.rates[12] < seen.rates[6]
    assert len({step for step in seen.weights if same(seen.weights[step], seen.weights[6])}) == 2

    batches = len(seen.attacks) // (2 * accumulate)
    update_of = [
        epoch * -(-batches // accumulate) + batch // accumulate + 1
        for epoch in range(2 * accumulate)
        for batch in range(batches)
    ]
    expected = [replace(SINGLE, steps=4, step_size=None) if 12 < update <= 17 else SINGLE for update in update_of]
    assert seen.attacks == expected
    assert (guard.best, guard.recoveries, guard.remaining) == (0.5, 1, 0)

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines == [
        "step 12: accuracy under PGD-4 fell from its best of 50.0 % to 10.0 % on the guard's images: back to the "
        "weights of step 6, and the next 5 steps attack with 4 steps"
    ]


@pytest.mark.parametrize(
    ("first", "second", "collapsed"),
    [(0.5, 0.26, False), (0.5, 0.24, True), (0.09, 0.0, False), (0.2, 0.0, True)],
)
def test_what_is_a_collapse(tmp_path, monkeypatch, first, second, collapsed):
    """Less than half of the best, unless the best is what an untrained network has by chance."""
    guard = companion(session_of(tiny(tmp_path)), Guard)
    script(monkeypatch, {3: first, 6: second, 9: first})
    guard.after_update(3, epoch=0)
    assert guard.recoveries == 0
    guard.after_update(6, epoch=0)
    assert collapsed == guard.recoveries == (guard.remaining > 0)
    guard.after_update(9, epoch=0)
    assert guard.recoveries == collapsed and guard.snapshot["step"] == 9


def test_summary_rows_tell_what_the_guard_saw(tmp_path, monkeypatch):
    script(monkeypatch, COLLAPSE)
    run(tiny(tmp_path / "run"))
    length = len(session_of(tiny(tmp_path)).loader)
    newest = [max(step for step in COLLAPSE if step <= epoch * length) for epoch in (1, 2)]
    found = [(row["guard_robust"], row["guard_recoveries"]) for row in rows(tmp_path / "run")]
    assert found == [(COLLAPSE[step], int(step >= 12)) for step in newest]
    assert found[0][1] == 0 and found[1][1] == 1


def test_destroyed_weights_are_measured_as_a_collapse(tmp_path, monkeypatch):
    seen = follow(monkeypatch)
    step_of = Loop._step

    def destroying(self, batch, *rest):
        terms = step_of(self, batch, *rest)
        if len(seen.attacks) == 75:
            for parameter in self.method.parameters():
                parameter.data.zero_()
        return terms

    monkeypatch.setattr(Loop, "_step", destroying)
    config = tiny(
        tmp_path / "run",
        data=replace(DATA, batch_size=32),
        attack=PGD(eps=0.02, steps=1),
        optimizer=OptimizerConfig(lr=0.2),
        guard=GuardConfig(every=25, steps=2, images=200, recover=3),
    )
    guard = run(config)
    assert guard.best > 0.3 and guard.recoveries == 1
    assert same(seen.weights[75], seen.weights[50]) and same(seen.optimizer[75], seen.optimizer[50])
    assert [attack.steps for attack in seen.attacks[75:80]] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("method", [MadryConfig(), ARATConfig()], ids=["madry", "arat"])
def test_without_a_collapse_training_is_bitwise_that_without_the_guard(tmp_path, method):
    for name, every in (("guarded", 2), ("alone", 0)):
        # A drop that no accuracy above zero falls below.
        guard = GuardConfig(every=every, steps=2, images=64, drop=1e-6)
        run(tiny(tmp_path / name, method=method, guard=guard))
        forget()
    guarded, alone = (load_file(tmp_path / name / "weights/last.safetensors") for name in ("guarded", "alone"))
    assert same(guarded, alone)
    assert all(row["guard_robust"] is not None and row["guard_recoveries"] == 0 for row in rows(tmp_path / "guarded"))
    assert not any(name.startswith("guard") for row in rows(tmp_path / "alone") for name in row)


@pytest.mark.parametrize("stop_at", [7, 14, 17])
def test_a_run_interrupted_in_or_between_recoveries_resumes_to_the_same_weights(tmp_path, monkeypatch, stop_at):
    # The second collapse goes back to a snapshot of before the interruption.
    script(monkeypatch, {3: 0.5, 6: 0.1, 9: 0.3, 12: 0.3, 15: 0.1, 18: 0.3, 21: 0.3})
    seen = follow(monkeypatch)
    guard = GuardConfig(every=3, steps=4, images=64, recover=2)
    config = tiny(tmp_path / "whole", guard=guard)
    whole = run(config)
    assert whole.recoveries == 2
    # The second is twice as long.
    assert [i for i, attack in enumerate(seen.attacks) if attack.steps == 4] == [6, 7, 15, 16, 17, 18]
    # The first return did not train on the snapshot itself.
    assert same(seen.weights[15], seen.weights[3]) and same(seen.optimizer[15], seen.optimizer[3])
    attacks, seen.attacks[:] = list(seen.attacks), []
    forget()

    config = tiny(tmp_path / "run", guard=guard)
    due = Loop._checkpoint_if_due
    steps = len(attacks) // 2

    def stop(self, epoch, done):
        self.signals.came = epoch * steps + done >= stop_at
        if self.signals.came:
            assert (companion(self.session, Guard).remaining > 0) == (attacks[stop_at].steps == 4)
        due(self, epoch, done)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_checkpoint_if_due", stop)
        with pytest.raises(Interrupted):
            run(config)
    assert len(seen.attacks) == stop_at
    forget()
    torch.rand(3)
    resumed = run(replace(config, resume=True))
    assert seen.attacks == attacks
    finals = (load_file(tmp_path / name / "weights/last.safetensors") for name in ("run", "whole"))
    assert same(*finals)
    assert same(whole.snapshot["method"], resumed.snapshot["method"])
    for key in ("guard_robust", "guard_recoveries", "val_robust"):
        assert rows(tmp_path / "run")[-1][key] == rows(tmp_path / "whole")[-1][key], key
    assert [(g.best, g.last, g.recoveries, g.remaining) for g in (whole, resumed)] == [(0.5, 0.3, 2, 0)] * 2


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_average_never_takes_in_weights_that_a_measurement_rejected(tmp_path, monkeypatch, kind):
    script(monkeypatch, COLLAPSE)
    seen = follow(monkeypatch)
    taken = {}
    after = Average.after_update

    def told(self, update, epoch):
        taken[update] = deepcopy(dict(self.method.state_dict()))
        after(self, update, epoch)

    monkeypatch.setattr(Average, "after_update", told)
    run(tiny(tmp_path / "run", average=AverageConfig(kind=kind, every=6, batches=1)))
    assert same(taken[12], seen.weights[6])


def test_the_guard_measures_the_training_threat_at_its_full_eps_on_plain_images(tmp_path):
    attack = PGD(norm="l2", eps=0.5, steps=1, warmup_epochs=3)
    data = replace(DATA, crop="pad4")
    guard = companion(session_of(tiny(tmp_path, attack=attack, data=data)), Guard)
    assert guard.measured_by == PGD(norm="l2", eps=0.5, steps=4)
    x, y = guard.images
    assert len(x) == 64 and y.bincount().min() >= 5
    first = attack.at_epoch(0)
    assert guard.attack(first) is first
    guard.remaining = 1
    assert (guard.attack(first).steps, guard.attack(first).eps) == (4, 0.125)
    forget()
    again = companion(session_of(tiny(tmp_path, attack=attack, data=DATA)), Guard)
    assert torch.equal(x, again.images[0])


def test_a_twin_is_guarded_too(tmp_path):
    twin = MadryConfig(label_smoothing=0.1)
    train(tiny(tmp_path / "run", twin=twin, epochs=1))
    assert rows(tmp_path / "run/twin")[0]["guard_recoveries"] == 0


def test_the_recipe_is_one_step_under_a_guard():
    words = ["--config", str(recipes()["cifar10_resnet20_single_step"])]
    config = read(TrainConfig, words, variants=VARIANTS, prog="x", description="")
    assert config.method == MadryConfig() and config.attack == PGD(eps=8 / 255, steps=1, step_size=10 / 255)
    assert config.guard == GuardConfig(every=100, images=128)
    assert TrainConfig().guard.every == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": -1}, "every=-1 is not at least 0"),
        ({"steps": 0}, "steps=0 is not at least 1"),
        ({"images": 0}, "images=0 is not at least 1"),
        ({"recover": 0}, "recover=0 is not at least 1"),
        ({"drop": 1.0}, r"drop=1.0 is not in \(0, 1\)"),
        ({"drop": 0.0}, r"drop=0.0 is not in \(0, 1\)"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"tolerance": 0.6}, "weights below drop=0.5"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GuardConfig(**{"every": 5, **settings})


def test_a_guard_needs_an_attack_that_is_not_above_its_own():
    on = GuardConfig(every=5)
    with pytest.raises(ValueError, match="method.name=standard has no attack to guard"):
        Guard.check(TrainConfig(method=StandardConfig(), guard=on))
    with pytest.raises(ValueError, match="the branch that is deployed, and advprop attacks the other one"):
        Guard.check(TrainConfig(method=AdvPropConfig(), guard=on))
    with pytest.raises(ValueError, match="guard.steps=10 is below attack.steps=20"):
        Guard.check(TrainConfig(method=MadryConfig(), attack=PGD(steps=20), guard=on))
    Guard.check(TrainConfig(method=MadryConfig(), attack=PGD(steps=7), guard=on))
    Guard.check(TrainConfig(method=StandardConfig(), attack=PGD(steps=20)))


def test_a_twin_without_an_attack_trains_without_a_guard(tmp_path):
    train(tiny(tmp_path / "run", twin=StandardConfig(), epochs=1))
    assert "guard_recoveries" in rows(tmp_path / "run")[0]
    assert "guard_recoveries" not in rows(tmp_path / "run/twin")[0]


def test_a_teacher_that_learns_along_goes_back_with_its_momentum(tmp_path, monkeypatch):
    teacher = helpers_engine.MODEL
    script(monkeypatch, {3: 0.5, 6: 0.1})
    session = session_of(tiny(tmp_path, method=LBGATConfig(), teacher=teacher))
    guard, seen = companion(session, Guard), session.method.teacher.model.conv1.weight
    guard.after_update(3, 0)
    before = seen.detach().clone()
    with torch.no_grad():
        seen.add_(1)
    guard.after_update(6, 0)
    assert guard.recoveries == 1 and torch.equal(seen, before)
