"""Compiled training steps are what plain ones are, where they are compiled at all."""

import copy
import shutil
from contextlib import nullcontext

import pytest
import timm
import torch

from timm_arat import ARAT, PGD, compiling
from timm_arat.compiling import LONG_RUN, compiled_steps

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def build(**settings):
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", num_classes=10, layers=(1, 1), channels=(8, 8))
    return ARAT(model, attack=PGD(steps=2), **settings).train()


@pytest.fixture
def method():
    return build()


def step(method, context):
    """Loss and gradient of a step, after which the statistics are what they were before."""
    state = copy.deepcopy(method.state_dict())
    torch.manual_seed(1)
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    with context():
        terms = method(x, y)
        terms["loss"].backward()
    gradient = torch.cat([p.grad.flatten() for p in method.parameters()])
    method.zero_grad()
    method.load_state_dict(state)
    return terms["loss"].detach(), gradient


@pytest.mark.parametrize("wish, steps", [("off", 10**9), ("auto", LONG_RUN - 1)])
def test_off_and_short_runs_are_left_alone(method, wish, steps):
    assert compiled_steps(method.model, wish, steps, print) is nullcontext
    assert method.model._compiled_call_impl is None


def test_without_a_compiler_it_runs_eagerly_and_says_so_once(method, monkeypatch):
    monkeypatch.setattr(compiling, "compile_failure", lambda device: "InvalidCxxCompiler: no g++")
    said = []
    assert compiled_steps(method.model, "on", 1, said.append) is nullcontext
    assert len(said) == 1 and "no g++" in said[0]
    assert method.model._compiled_call_impl is None


def test_a_compiler_that_fails_is_a_reason_and_no_error(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: 1 / 0)
    assert "ZeroDivisionError" in compiling.compile_failure(torch.device("cpu"))


@needs_compiler
def test_compiled_steps_equal_plain_ones_to_1e_4_and_compile_once(method):
    plain = step(method, nullcontext)
    context = compiled_steps(method.model, "on", 1, print)
    torch._dynamo.utils.counters.clear()
    for _ in range(3):
        loss, gradient = step(method, context)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert graphs == 1, "folding afresh in every attack must not compile afresh"
    assert torch.allclose(loss, plain[0], rtol=1e-4)
    assert (gradient - plain[1]).norm() < 1e-4 * plain[1].norm()


@needs_compiler
def test_a_compiled_backbone_gives_the_features_of_named_layers():
    """Whose hooks come and go at every step, which torch.compile does not watch."""
    method = build(layers=("layer1.0", "layer2.0.conv1"))
    plain = [step(method, nullcontext) for _ in range(2)]
    context = compiled_steps(method.model, "on", 1, print)
    for loss, gradient in plain:
        found = step(method, context)
        assert torch.allclose(found[0], loss, rtol=1e-4)
        assert (found[1] - gradient).norm() < 1e-4 * gradient.norm()


@needs_compiler
def test_outside_a_step_nothing_is_compiled(method):
    compiled_steps(method.model, "on", 1, print)
    torch._dynamo.utils.counters.clear()
    method.eval()
    for size in (2, 3, 5):
        method.clean_logits(torch.rand(size, 3, 8, 8))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
