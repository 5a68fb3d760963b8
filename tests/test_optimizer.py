"""Optimizer and schedule by timm's rules: groups, rates, first updates, and the gradient of a last, shorter group."""

import math
from dataclasses import replace
from pathlib import Path

import helpers_engine
import pytest
import timm
import torch
from helpers_engine import DATA, fresh_accelerate, rows, session_of  # noqa: F401  # a fixture
from torch import nn

from timm_arat.config import read, recipes
from timm_arat.engine import checkpoint
from timm_arat.engine.config import OptimizerConfig, TrainConfig
from timm_arat.engine.log import Log
from timm_arat.engine.loop import Loop
from timm_arat.engine.optimizer import build_optimizer, build_schedule
from timm_arat.engine.recipe import VARIANTS
from timm_arat.engine.train import train
from timm_arat.methods import ARAT, ARATConfig, Method, StandardConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    """Two epochs of plain training: what is here asks nothing of an attack."""
    return helpers_engine.tiny(folder, **{"method": StandardConfig(), **changes})


def small() -> ARAT:
    return ARAT(timm.create_model("resnet20_cifar", layers=(1, 1), channels=(8, 8)))


def grouped(method: Method, **settings) -> dict[str, tuple[float, float]]:
    """Weight decay and share of the rate of every parameter by its name."""
    config = TrainConfig(optimizer=OptimizerConfig(weight_decay=0.1, **settings))
    names = {id(p): name for name, p in method.named_parameters()}
    groups = build_optimizer(config, method).param_groups
    return {names[id(p)]: (g["weight_decay"], g.get("lr_scale", 1.0)) for g in groups for p in g["params"]}


def vit() -> ARAT:
    return ARAT(timm.create_model("test_vit", num_classes=10), split_norm="all")


def test_what_the_model_names_is_not_decayed_unless_all_is():
    method = vit()
    found = grouped(method, name="adamw", decay_all=False)
    assert found.keys() == {name for name, _ in method.named_parameters()}
    for name, p in method.named_parameters():
        exempt = p.ndim <= 1 or name in ("network.model.pos_embed", "network.model.cls_token")
        assert found[name] == ((0.0 if exempt else 0.1), 1.0), name
    assert found["network.model.pos_embed"] == (0.0, 1.0) and found["predictors.0.0.weight"] == (0.1, 1.0)
    assert {decay for decay, _ in grouped(method, name="adamw").values()} == {0.1}


@pytest.mark.parametrize("decay_all", [True, False])
def test_layer_decay_scales_the_rates_by_the_layers_of_the_backbone(decay_all):
    method = vit()
    found = grouped(method, name="adamw", decay_all=decay_all, kwargs={"layer_decay": 0.5})
    # timm's own groups of the plain backbone, whose layers these are.
    plain: nn.Module = timm.create_model("test_vit", num_classes=10)
    names = {id(p): name for name, p in plain.named_parameters()}
    optimizer = timm.optim.create_optimizer_v2(
        plain, "adamw", weight_decay=0.1, layer_decay=0.5, filter_bias_and_bn=not decay_all
    )
    for group in optimizer.param_groups:
        for p in group["params"]:
            decay, scale = found["network.model." + names[id(p)]]
            assert scale == group["lr_scale"], names[id(p)]
            assert decay_all or decay == group["weight_decay"], names[id(p)]
    blocks = [found[f"network.model.blocks.{n}.attn.qkv.weight"][1] for n in range(len(plain.blocks))]
    assert all(b == 2 * a for a, b in zip(blocks, blocks[1:], strict=False)) and found["network.model.pos_embed"][1] < 1
    assert found["predictors.0.0.weight"][1] == found["network.model.head.weight"][1] == 1.0
    aux = [name for name in found if ".blocks.0.norm1.aux_bn." in name]
    assert aux and all(found[name][1] == blocks[0] for name in aux)
    assert {decay for decay, _ in found.values()} == ({0.1} if decay_all else {0.0, 0.1})


def test_layer_decay_reaches_the_rates_of_a_run(tmp_path):
    settings = OptimizerConfig(lr=0.1, schedule="constant", kwargs={"layer_decay": 0.5})
    session = session_of(tiny(tmp_path, optimizer=settings))
    groups = session.optimizer.param_groups
    assert {g["lr"] for g in groups} == {0.1 * g["lr_scale"] for g in groups} and len({g["lr"] for g in groups}) > 2
    assert Loop(session, Log(session.accelerator, tmp_path, 10))._lr == 0.1


def test_every_parameter_is_in_the_optimizer_and_the_schedule_warms_up(tmp_path):
    config = tiny(tmp_path, optimizer=OptimizerConfig(lr=0.1, warmup_epochs=1, warmup_lr=0.01))
    session = session_of(config)
    in_groups = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
    assert in_groups == {id(p) for p in session.method.parameters() if p.requires_grad}
    rates = []
    for step in range(20):
        session.schedule.step_update(step)
        rates.append(session.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01)
    assert rates[: len(session.loader)] == sorted(rates[: len(session.loader)])
    assert max(rates) > 4 * rates[-1]


def test_unknown_optimizer_and_schedule_are_errors(tmp_path):
    method = small()
    with pytest.raises(ValueError, match="adamw"):
        build_optimizer(tiny(tmp_path, optimizer=OptimizerConfig(name="adamww")), method)
    with pytest.raises(ValueError, match="optimizer.kwargs .*'beta': 0.9.* do not fit sgd here"):
        build_optimizer(tiny(tmp_path, optimizer=OptimizerConfig(kwargs={"beta": 0.9})), method)
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
        method = small()
        settings = OptimizerConfig(name=name, lr=0.01, kwargs=kwargs)
        optimizer = build_optimizer(tiny(tmp_path, optimizer=settings), method)
        assert optimizer.defaults.get("fused", False) == (name != "lion" and not kwargs)
        for _ in range(3):
            for p in method.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        after.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
    assert torch.allclose(*after, rtol=1e-5, atol=1e-7)


def test_the_official_recipe_updates_as_plain_sgd_with_momentum():
    words = ["--config", str(recipes()["cifar10_resnet18_official"])]
    config = read(TrainConfig, words, variants=VARIANTS, prog="x", description="")
    torch.manual_seed(0)
    method = small()
    optimizer = build_optimizer(config, method)
    weights = [p.detach().clone() for p in method.parameters()]
    momenta = [torch.zeros_like(w) for w in weights]
    for _ in range(2):
        for p, w, m in zip(method.parameters(), weights, momenta, strict=True):
            p.grad = torch.randn_like(p)
            m.mul_(0.9).add_(p.grad + 5e-4 * w)  # torch.optim.SGD(nesterov=False, weight_decay=5e-4)
            w.sub_(0.1 * m)
        optimizer.step()
        for p, w in zip(method.parameters(), weights, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("accumulate", "left"), [(4, 2), (3, 1), (5, 0), (1, 0), (16, 10)])
def test_every_update_averages_the_batches_it_has(tmp_path, monkeypatch, accumulate, left):
    """Ten batches an epoch; by hand: the mean of the gradients of an update's batches at the weights before it."""
    settings = OptimizerConfig(name="momentum", momentum=0.0, lr=0.05, weight_decay=0.0, accumulate=accumulate)
    config = tiny(tmp_path, epochs=1, optimizer=replace(settings, schedule="constant"))
    session = session_of(config)
    steps = len(session.loader)
    assert steps % accumulate == left
    grads, updates = [], []
    of_step = Loop._step

    def watch(self, batch, *rest):
        self.method.train()
        buffers = [(b, b.clone()) for b in self.method.buffers()]
        loss = self.method.terms(batch.x, batch.y, batch.x).loss()
        grads.append(torch.autograd.grad(loss, self.method.network.model.fc.weight)[0])
        for buffer, value in buffers:
            buffer.copy_(value)
        before = self.method.model.fc.weight.detach().clone()
        found = of_step(self, batch, *rest)
        if self.accelerator.sync_gradients:
            updates.append(((before - self.method.model.fc.weight.detach()) / 0.05, torch.stack(grads).mean(0)))
            grads.clear()
        return found

    monkeypatch.setattr(Loop, "_step", watch)
    Loop(session, Log(session.accelerator, tmp_path, 100)).run()
    assert len(updates) == -(-steps // accumulate) and not grads
    for found, expected in updates:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def rates(**settings) -> list[float]:
    """The rate at each of the ten epochs (two steps each) of a schedule."""
    settings = {"lr": 1.0, "by_step": False, **settings}
    config = TrainConfig(optimizer=OptimizerConfig(**settings), epochs=10, data=DATA)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(config, optimizer, updates=2)
    found = []
    for epoch in range(10):
        schedule.step_update(2 * epoch) if config.optimizer.by_step else schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("by_step", [True, False])
def test_schedules_are_timms(by_step):
    assert rates(schedule="constant", by_step=by_step) == rates(schedule="none", by_step=by_step) == [1.0] * 10
    # timm looks one step, or by epochs one epoch, ahead for its milestones.
    first = 2 if by_step else 1
    expected = [1.0] * first + [0.1] * 3 + [0.01] * (7 - first)
    assert rates(schedule="multistep", milestones=(2, 5), by_step=by_step) == pytest.approx(expected)
    assert rates(schedule="step", decay_epochs=4, decay_rate=0.5, by_step=by_step) == [1.0] * 4 + [0.5] * 4 + [0.25] * 2
    cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * n / 10)) for n in range(10)]
    assert rates(schedule="cosine", min_lr=0.1, by_step=by_step) == pytest.approx(cosine)
    assert rates(schedule="poly", decay_rate=1.0, by_step=by_step) == pytest.approx([1 - n / 10 for n in range(10)])
    for falling in (rates(schedule="tanh", by_step=by_step), rates(schedule="wsd", by_step=by_step)):
        assert falling == sorted(falling, reverse=True) and falling[0] > 0.9 and falling[-1] < 0.6


def test_warm_ups():
    settings = {"schedule": "constant", "warmup_epochs": 2, "warmup_lr": 0.2}
    assert rates(**settings) == pytest.approx([0.2, 0.6] + [1.0] * 8)
    # Replaced by the warm-up, the cosine is on its way when it begins; behind it, it is at its peak.
    settings["schedule"] = "cosine"
    assert rates(**settings)[2] < 0.95 and rates(**settings, warmup_prefix=True)[2] == 1.0
    assert rates(**settings, warmup_prefix=True)[-1] < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "step"}, "schedule=step never decays without decay_epochs"),
        ({"schedule": "multistep"}, "schedule=multistep never decays without milestones"),
    ],
)
def test_schedules_without_a_period_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


def test_plateau_needs_a_validation():
    with pytest.raises(ValueError, match="plateau follows the validation score.*data.val_size"):
        TrainConfig(optimizer=OptimizerConfig(schedule="plateau"))


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
def test_plateau_follows_the_score_and_a_resume_remembers_it(tmp_path, monkeypatch):
    scores = [0.3, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6]
    monkeypatch.setattr(
        Loop, "_validate", lambda self, _: {"val_clean": 0.0, "val_robust": scores[self.session.images.epoch]}
    )
    # One epoch without a better score is borne, the second decays.
    settings = OptimizerConfig(lr=0.1, schedule="plateau", patience_epochs=1, decay_rate=0.5)
    config = tiny(tmp_path / "run", optimizer=settings, epochs=8)
    expected = [0.1] * 4 + [0.05] * 3 + [0.025]
    train(config)
    assert [row["lr"] for row in rows(tmp_path / "run")] == pytest.approx(expected)
    held = checkpoint.load_tree(checkpoint.newest(tmp_path / "run/checkpoints") / "training")
    assert held["schedule"]["best"] == 0.6
    helpers_engine.forget()
    config = tiny(tmp_path / "cut", optimizer=settings, epochs=3)
    train(config)
    helpers_engine.forget()
    train(replace(config, epochs=8, resume=True))
    assert [row["lr"] for row in rows(tmp_path / "cut")] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["cosine", "tanh", "poly", "step", "multistep", "wsd", "rsqrt", "constant"])
def test_a_run_trains_by_every_schedule(tmp_path, schedule):
    warmup = int(schedule == "rsqrt")  # its time scale
    settings = OptimizerConfig(schedule=schedule, decay_epochs=1, milestones=(1,), warmup_epochs=warmup)
    session = session_of(tiny(tmp_path, optimizer=settings))
    Loop(session, Log(session.accelerator, tmp_path, 10)).run()
    assert len(rows(tmp_path)) == 2


def test_a_backbone_that_does_not_tell_its_layers_is_refused(monkeypatch):
    method = small()
    monkeypatch.delattr(timm.models.ResNet, "group_matcher")
    with pytest.raises(ValueError, match="layer_decay: .* does not tell its layers"):
        grouped(method, kwargs={"layer_decay": 0.5})


def test_sync_norm_comes_before_the_split(tmp_path):
    session = session_of(tiny(tmp_path, method=ARATConfig(), model=replace(helpers_engine.MODEL, sync_norm=True)))
    for part in (session.method.model, session.method.predictors):
        norms = [module for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert session.method.model.bn1.aux_bn is not None
