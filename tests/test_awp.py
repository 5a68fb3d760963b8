"""Adversarial weight perturbation: what it moves by how much, what it leaves alone, and what it goes together with."""

from dataclasses import replace
from pathlib import Path

import helpers_engine
import pytest
import torch
from helpers_engine import companion, fresh_accelerate, session_of  # noqa: F401  # a fixture
from safetensors.torch import load_file
from torch import nn

from timm_arat.engine.companions import Batch
from timm_arat.engine.companions.awp import AWP
from timm_arat.engine.config import AverageConfig, AWPConfig, OptimizerConfig, TrainConfig
from timm_arat.engine.log import Log
from timm_arat.engine.loop import Loop
from timm_arat.engine.session import Session
from timm_arat.methods import ARATConfig, MadryConfig, TRADESConfig

METHODS = [MadryConfig, TRADESConfig, ARATConfig]
GAMMA = 0.02
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    """One epoch under AWP, in float32."""
    return helpers_engine.tiny(
        folder, **{"awp": AWPConfig(gamma=GAMMA), "mixed_precision": "no", "epochs": 1, **changes}
    )


def ready(session: Session) -> tuple[AWP, Batch, torch.Tensor, torch.Tensor]:
    """The companion, and the images and adversarial images of a step."""
    session.method.train()
    x, y = next(iter(session.loader))
    return companion(session, AWP), Batch(x, y), *session.method.perturb(x, y)


def parameters(session: Session) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in session.method.named_parameters()}


@pytest.mark.parametrize("kind", METHODS)
def test_each_weight_moves_by_gamma_of_its_length_along_the_gradient_and_comes_back(tmp_path, kind):
    session = session_of(tiny(tmp_path, method=kind()))
    for module in session.method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(module.weight)  # timm begins the last norm of a block at zero, before which no gradient is
    awp, batch, x, x_adv = ready(session)
    before = parameters(session)
    buffers = {name: b.clone() for name, b in session.method.named_buffers()}
    with awp.around_step(batch, x, x_adv):
        inside = parameters(session)
        assert all(torch.equal(b, buffers[name]) for name, b in session.method.named_buffers())
    # By hand, with the gradients that an optimizer would see.
    session.method.terms(x, batch.y, x_adv).loss().backward()
    moved = 0
    for name, p in session.method.named_parameters():
        if p.ndim == 1:
            assert torch.equal(inside[name], before[name]), name  # biases and norms
            continue
        expected = GAMMA * before[name].norm() * p.grad / p.grad.norm()
        torch.testing.assert_close(inside[name] - before[name], expected, rtol=1e-3, atol=1e-6)
        assert float((inside[name] - before[name]).norm() / before[name].norm()) == pytest.approx(GAMMA, rel=1e-3)
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-7)
        moved += 1
    assert moved >= 5


def test_the_step_is_the_optimizers_from_the_old_weights_by_the_gradient_at_the_worse_ones(tmp_path):
    session = session_of(tiny(tmp_path, optimizer=OptimizerConfig(name="momentum", lr=0.05, weight_decay=0.0)))
    awp, batch, x, x_adv = ready(session)
    before = parameters(session)
    with awp.around_step(batch, x, x_adv):
        worse = parameters(session)
    with torch.no_grad():
        for name, p in session.method.named_parameters():
            p.copy_(worse[name])
    session.method(x, batch.y, x_adv)["loss"].backward()
    grads = {name: p.grad.clone() for name, p in session.method.named_parameters()}
    session.optimizer.zero_grad()
    with torch.no_grad():
        for name, p in session.method.named_parameters():
            p.copy_(before[name])
    with awp.around_step(batch, x, x_adv):
        session.method(x, batch.y, x_adv)["loss"].backward()
        session.optimizer.step()
    for name, p in session.method.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.05 * grads[name], rtol=1e-4, atol=2e-6)


def test_a_weight_without_a_gradient_stays_where_it_is(tmp_path):
    session = session_of(tiny(tmp_path))
    awp, batch, x, x_adv = ready(session)
    (block,) = session.method.model.layer1
    assert (block.bn2.weight == 0).all()
    before = block.conv2.weight.detach().clone()
    with awp.around_step(batch, x, x_adv):
        assert torch.equal(block.conv2.weight, before)


def test_an_error_inside_the_step_leaves_the_weights_as_they_were(tmp_path):
    session = session_of(tiny(tmp_path))
    awp, batch, x, x_adv = ready(session)
    before = parameters(session)
    with pytest.raises(KeyboardInterrupt), awp.around_step(batch, x, x_adv):
        assert not torch.equal(parameters(session)["network.model.conv1.weight"], before["network.model.conv1.weight"])
        raise KeyboardInterrupt
    for name, p in session.method.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-7)


def run(config: TrainConfig) -> dict[str, torch.Tensor]:
    """The last weights of a training."""
    session = session_of(config)
    Loop(session, Log(session.accelerator, session.folder, 10)).run()
    helpers_engine.forget()
    return load_file(session.folder / "weights" / "last.safetensors")


@pytest.mark.parametrize("kind", METHODS)
def test_it_goes_with_every_method_with_accumulation_and_an_average(tmp_path, kind):
    optimizer, average = OptimizerConfig(lr=0.05, accumulate=3), AverageConfig(kind="ema", decay=0.5, batches=1)
    config = tiny(tmp_path / "with", method=kind(), optimizer=optimizer, average=average)
    found = run(config)
    without = run(replace(config, awp=AWPConfig(), output=str(tmp_path / "without")))
    assert all(value.isfinite().all() for value in found.values())
    assert not torch.equal(found["conv1.weight"], without["conv1.weight"])


def test_it_begins_at_its_epoch(tmp_path):
    session = session_of(tiny(tmp_path, awp=AWPConfig(gamma=GAMMA, start_epoch=2)))
    awp, batch, x, x_adv = ready(session)
    before = parameters(session)
    for epoch, active in ((0, False), (1, False), (2, True), (3, True)):
        awp.begin(epoch, resumed=False)
        with awp.around_step(batch, x, x_adv):
            assert all(torch.equal(before[n], p) for n, p in parameters(session).items()) != active


def test_before_its_first_epoch_training_is_bitwise_that_without(tmp_path):
    late = run(tiny(tmp_path / "late", awp=AWPConfig(gamma=GAMMA, start_epoch=1)))
    without = run(tiny(tmp_path / "without", awp=AWPConfig()))
    assert all(torch.equal(late[name], without[name]) for name in without)


@pytest.mark.parametrize(
    ("settings", "message"), [({"gamma": 1.0}, "gamma=1.0"), ({"start_epoch": -1}, "start_epoch=-1")]
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AWPConfig(**settings)
