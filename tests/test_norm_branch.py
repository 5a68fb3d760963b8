"""The three modes: what each computes, touches and restores."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from helpers_norm import shift_aux
from timm.layers import create_feature_extractor
from torch import Tensor, nn

from timm_arat.norm import convert_split_norm, norm_branch, split_norms


class Small(nn.Module):
    """Two norms, an in-place act over the first, an in-place add over the second; optionally checkpointed."""

    def __init__(self, checkpoint: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.checkpoint, self.reentrant = checkpoint, reentrant

    bn1: Any  # a split norm later
    bn2: Any

    def block(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(x))
        y += x
        return y

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpoint:
            y = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=self.reentrant)
        else:
            y = self.block(x)
        return self.fc(y.mean((2, 3)))


def small(**kwargs: Any) -> Small:
    torch.manual_seed(0)
    model = convert_split_norm(Small(**kwargs))
    shift_aux(model)
    return model


def images() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(got[name].float(), value.float(), atol=atol), name


def two_passes(model: nn.Module, x: Tensor) -> Tensor:
    x_main, x_aux = x.chunk(2)
    with norm_branch(model, "main"):
        y_main = model(x_main)
    with norm_branch(model, "aux"):
        y_aux = model(x_aux)
    return torch.cat([y_main, y_aux])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_both_is_two_passes_with_gradients_and_statistics(training: bool) -> None:
    joint = small().train(training)
    switched = copy.deepcopy(joint)
    x = images()
    weights = torch.randn(8, 5)
    with norm_branch(joint, "both"):
        y = joint(x)
    (y * weights).sum().backward()
    y_two = two_passes(switched, x)
    (y_two * weights).sum().backward()
    assert torch.allclose(y, y_two, atol=1e-6)
    assert_equal(gradients(joint), gradients(switched))
    assert_equal(dict(joint.named_buffers()), dict(switched.named_buffers()))
    assert int(joint.bn1.num_batches_tracked) == int(training)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("branch", ["main", "aux"])
def test_a_branch_never_touches_the_other(branch: Any, training: bool) -> None:
    model = small().train(training)
    before = copy.deepcopy(model.state_dict())
    with norm_branch(model, branch):
        model(images()).sum().backward()
    for name, value in model.state_dict().items():
        if (".aux_bn." in name) != (branch == "aux"):
            assert torch.equal(value, before[name]), name
    other = {name for name in gradients(model) if "bn" in name and (".aux_bn." in name) != (branch == "aux")}
    assert not other


def test_modes_nest_and_are_restored_after_errors() -> None:
    model = small()
    modes = lambda: {norm.branch for _, norm in split_norms(model)}  # noqa: E731
    original = torch.utils.checkpoint.checkpoint
    with norm_branch(model, "both") as inside:
        assert inside is model and modes() == {"both"}
        with pytest.raises(RuntimeError), norm_branch(model, "aux"):
            assert modes() == {"aux"}
            raise RuntimeError
        assert modes() == {"both"}
    assert modes() == {"main"} and torch.utils.checkpoint.checkpoint is original


def test_the_mode_is_no_part_of_the_state() -> None:
    model = small()
    keys = list(model.state_dict())
    with norm_branch(model, "aux"):
        assert list(model.state_dict()) == keys


def test_bad_calls_say_what_is_wanted() -> None:
    with pytest.raises(ValueError, match="'clean' is not one of 'main', 'aux', 'both'"):
        with norm_branch(small(), "clean"):  # type: ignore[arg-type]
            pass
    with pytest.raises(ValueError, match="call convert_split_norm"), norm_branch(Small(), "main"):
        pass
    with norm_branch(small(), "both") as model, pytest.raises(ValueError, match="7 is odd"):
        model(torch.rand(7, 3, 8, 8))


@pytest.mark.parametrize(("branch", "n"), [("both", 2), ("main", 1), ("aux", 1)])
def test_one_value_a_channel_is_refused_in_training_only(branch: Any, n: int) -> None:
    model = convert_split_norm(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)))
    x = torch.rand(n, 3, 4, 4)
    with norm_branch(model, branch):
        with pytest.raises(ValueError, match="at least 2 images"):
            model(x)
        assert model.eval()(x).shape == (n, 3, 1, 1)


@pytest.mark.parametrize("branch", ["main", "aux", "both"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["nonreentrant", "reentrant"])
def test_checkpointing_recomputes_in_the_mode_of_the_forward(branch: Any, reentrant: bool) -> None:
    results = []
    for checkpoint in (False, True):
        model = small(checkpoint=checkpoint, reentrant=reentrant)
        x = images()
        with norm_branch(model, branch):
            y = model(x)
        y.square().sum().backward()  # outside the `with`, where the mode is another
        assert {norm.branch for _, norm in split_norms(model)} == {"main"}
        assert x.grad is not None
        results.append(gradients(model) | {"x": x.grad})
    assert_equal(results[1], results[0])


def test_checkpointing_with_two_switched_passes_and_one_backward() -> None:
    results = []
    for checkpoint in (False, True):
        model = small(checkpoint=checkpoint)
        two_passes(model, images()).square().sum().backward()
        results.append(gradients(model))
    assert_equal(results[1], results[0])


def test_checkpointing_in_timm() -> None:
    results = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model: Any = convert_split_norm(timm.create_model("test_resnet", num_classes=5))
        shift_aux(model)
        model.set_grad_checkpointing(checkpoint)
        with norm_branch(model, "both"):
            y = model(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
        y.square().sum().backward()
        results.append(gradients(model))
    assert_equal(results[1], results[0], atol=1e-4)


def test_a_replay_whose_mode_is_lost_is_refused() -> None:
    model = small(checkpoint=True)
    y = model(images())
    with pytest.raises(ValueError, match="inside `with norm_branch"):
        y.sum().backward()


def test_inputs_are_not_changed_and_channels_last_stays() -> None:
    model = small().to(memory_format=torch.channels_last)
    x = images().detach().to(memory_format=torch.channels_last)
    before = x.clone()
    layouts = []
    model.bn1.register_forward_hook(lambda m, i, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last)))
    for branch in ("main", "aux", "both"):
        with norm_branch(model, branch):
            model(x)
    assert torch.equal(x, before) and layouts == [True] * 3


def test_attention_biases_cached_by_an_attack_do_no_harm() -> None:
    model: Any = convert_split_norm(timm.create_model("levit_128s", num_classes=5, img_size=64)).eval()
    x = torch.rand(4, 3, 64, 64, requires_grad=True)
    with norm_branch(model, "main"):
        for _ in range(2):
            torch.autograd.grad(model(x).sum(), x)
        y = model(x)
    with norm_branch(model, "both"):
        assert torch.allclose(model(x)[:2], y[:2], atol=1e-5)


def test_compile_makes_one_graph_a_mode() -> None:
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model = small().eval()
    compiled = torch.compile(model, backend=count, fullgraph=True)
    x = images().detach()
    made = []
    for branch in ("main", "aux", "main", "aux", "both", "main", "aux", "both"):
        with norm_branch(model, branch):
            assert torch.equal(compiled(x), model(x))
        made.append(len(graphs))
    torch._dynamo.reset()
    assert made == [1, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet"])
def test_fx_feature_extraction(name: str) -> None:
    model: Any = convert_split_norm(timm.create_model(name, num_classes=5)).eval()
    layer = model.feature_info[-1]["module"]
    graph: Any = create_feature_extractor(model, {layer: "features"})
    x = torch.rand(4, 3, 32, 32)
    tapped = []
    model.get_submodule(layer).register_forward_hook(lambda m, i, y: tapped.append(y.clone()))
    for branch in ("main", "aux", "both"):
        with norm_branch(model, branch), norm_branch(graph, branch):
            model(x)
            assert torch.equal(graph(x)["features"], tapped[-1])
