"""A folded network computes what the network computes, is folded only where that is safe, and is put back."""

import copy
import gc
import pickle
import weakref

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from timm_arat import ARAT, PGD, convert_split_norm, norm_branch
from timm_arat.fold import Plan, _plan, folded


def with_statistics(model):
    """`model` frozen in eval mode, with norms that do something."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return model.eval().requires_grad_(False)


def build(name):
    torch.manual_seed(0)
    return with_statistics(timm.create_model(name, num_classes=10))


def logits_and_gradient(model, x):
    x = x.clone().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]


def relative(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def num_folded(model):
    return sum("forward" in vars(module) for module in model.modules())


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.rand(3, 3, 64, 64)


ALL = {"resnet20_cifar": 21, "test_resnet": 15, "test_efficientnet": 13, "mobilenetv3_small_050": 34, "seresnet50": 53}
SOME = {"repvgg_a0": 44, "densenet121": 59, "test_byobnet": 14}  # norms on sums and on concatenated features stay
NONE = {"test_convnext": 0, "nf_resnet26": 0, "convmixer_768_32": 0}  # LayerNorm, standardised weights, act before norm


@pytest.mark.parametrize("name, folds", {**ALL, **SOME, **NONE}.items())
def test_logits_and_pixel_gradients_are_equal_to_1e_9_in_float64(name, folds, x):
    model, x = build(name).double(), x.double()
    wanted = logits_and_gradient(model, x)
    with folded(model, x[:2]):
        assert num_folded(model) == folds
        found = logits_and_gradient(model, x)
    assert relative(found[0], wanted[0]) < 1e-9 and relative(found[1], wanted[1]) < 1e-9


@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050"])
def test_float32_is_equal_to_1e_4(name, x):
    """Where no ReLU or maximum is near its kink, at which rounding decides the gradient, folded or not."""
    model = build(name)
    wanted = logits_and_gradient(model, x)
    with folded(model, x[:2]):
        found = logits_and_gradient(model, x)
    assert relative(found[0], wanted[0]) < 1e-4 and relative(found[1], wanted[1]) < 1e-4


@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_put_back(raises, x):
    model = build("test_efficientnet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = [id(t) for t in model.parameters()]
    wanted = model(x)
    try:
        with folded(model, x[:2]):
            assert num_folded(model)
            assert 0 / (not raises) == 0
    except ZeroDivisionError:
        assert raises
    assert num_folded(model) == 0 and [id(t) for t in model.parameters()] == tensors
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("branch", ["main", "aux"])
def test_the_active_branch_of_a_split_norm_is_folded(name, branch, x):
    model = convert_split_norm(build(name))
    with_statistics(model).double()
    with norm_branch(model, branch):
        wanted = logits_and_gradient(model, x.double())
        with folded(model, x[:2].double()):
            assert num_folded(model) == ALL[name]
            found = logits_and_gradient(model, x.double())
    assert relative(found[1], wanted[1]) < 1e-9


def test_both_branches_at_once_are_not_folded(x):
    model = convert_split_norm(build("test_resnet"))
    with norm_branch(model, "both"), folded(model, x[:2]):
        assert num_folded(model) == 0


class Net(nn.Module):
    """A convolution and a norm, put together by `run(net, x)`."""

    def __init__(self, run):
        super().__init__()
        self.conv, self.other, self.norm, self.run = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), run

    def forward(self, x):
        return self.run(self, x).mean((2, 3))


UNSAFE = {
    "output used twice": lambda net, x: (lambda z: net.norm(z) + z)(net.conv(x)),
    "layer used twice": lambda net, x: net.norm(net.conv(net.conv(x))),
    "norm used twice": lambda net, x: net.norm(net.conv(x)) + net.norm(net.other(x)),
    "norm of a sum": lambda net, x: net.norm(net.conv(x) + x),
    "output changed in place": lambda net, x: net.norm(net.conv(x).relu_()),
    "weight used elsewhere": lambda net, x: net.norm(net.conv(x)) + net.conv.weight.sum(),
    "output in a list": lambda net, x: (lambda z: torch.cat([net.norm(z), z]))(net.conv(x)),
}


@pytest.mark.parametrize("run", UNSAFE.values(), ids=UNSAFE)
def test_what_is_unsafe_stays_as_it_is(run, x):
    model = with_statistics(Net(run))
    wanted = model(x)
    with folded(model, x[:2]):
        assert num_folded(model) == 0
        assert torch.equal(model(x), wanted)


def test_the_plain_case_of_that_network_is_folded(x):
    model = with_statistics(Net(lambda net, x: net.norm(net.conv(x))))
    with folded(model, x[:2]):
        assert num_folded(model) == 1


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_model_with_hooks_stays_as_it_is(register, x):
    model = build("test_resnet")
    getattr(model.layer1[0].conv1, register)(lambda *args: None)
    with folded(model, x[:2]):
        assert num_folded(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_that_does_more_than_it_seems_is_noticed(x, dtype):
    class Doubling(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Net(lambda net, x: net.norm(net.conv(x)))
    model.norm = Doubling(3)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        wanted = with_statistics(model)(x)
        with folded(model, x[:2]):
            assert num_folded(model) == 0
            assert torch.equal(model(x), wanted)


def test_an_error_on_the_way_leaves_the_model_as_it_was(x, monkeypatch):
    model = build("test_resnet")
    wanted, fold_one, calls = model(x), _plan.fold, []

    def fails(*pair):
        calls.append(pair)
        if len(calls) == 3:
            raise MemoryError
        return fold_one(*pair)

    monkeypatch.setattr(_plan, "fold", fails)
    with pytest.raises(MemoryError), folded(model, x[:2]):
        pass
    assert num_folded(model) == 0 and torch.equal(model(x), wanted)


def counted(model):
    """The batch sizes of the passes of `model`, as they come."""
    forward, batches = model.forward, []

    def count(x):
        batches.append(len(x))
        return forward(x)

    model.forward = count
    return batches


def test_a_plan_finds_once_and_folds_again_without_a_pass_and_with_the_weights_of_now(x):
    model, x, plan = build("test_efficientnet").double(), x.double(), Plan()
    batches = counted(model)
    with plan.folded(model, x[:1]):
        pass
    assert batches == [1, 1], "one to look, one to prove"
    with_statistics(model).conv_stem.weight.mul_(-1)
    wanted = logits_and_gradient(model, x)
    batches.clear()
    with plan.folded(model, x[:1]):
        assert batches == [] and num_folded(model) == ALL["test_efficientnet"] + 1
        found = logits_and_gradient(model, x)
    assert relative(found[0], wanted[0]) < 1e-9 and relative(found[1], wanted[1]) < 1e-9
    batches.clear()
    with folded(model, x[:1]):
        assert batches == [1, 1], "the function keeps no plan"


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_a_plan_is_empty(copied, x):
    model, plan = build("test_resnet"), Plan()
    with plan.folded(model, x[:1]):
        pass
    other, empty = copy.deepcopy(model), copied(plan)
    batches = counted(other)
    with empty.folded(other, x[:1]):
        assert batches == [1, 1] and num_folded(other) == ALL["test_resnet"] + 1 and num_folded(model) == 0


def test_a_copy_of_a_method_folds_its_own_network(x):
    method = ARAT(timm.create_model("test_resnet", num_classes=10), attack=PGD(steps=1))
    y = torch.zeros(3, dtype=torch.long)
    method.perturb(x, y)
    other = copy.deepcopy(method)
    with torch.no_grad():
        other.model.conv1[0].weight.mul_(-1)
    torch.manual_seed(0)
    _, found = other.perturb(x, y)
    torch.manual_seed(0)
    assert torch.equal(found, other.attack(other.network, x, y)), "and not that of the original"


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_plan_steps_aside_while_a_hook_is_there_that_came_later(register, x):
    model, plan = build("test_resnet"), Plan()
    counts = []
    for hooked in (False, True, False):
        handle = getattr(model.layer1[0].conv1, register)(lambda *args: None) if hooked else None
        with plan.folded(model, x[:1]):
            counts.append(num_folded(model))
        if handle is not None:
            handle.remove()
    assert counts == [15, 0, 15]


OTHERS = {
    "size": lambda model, x: (x[..., :32, :32], torch.float32),
    "type": lambda model, x: (x.double(), torch.float32),
    "autocast": lambda model, x: (x, torch.bfloat16),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_images_of_another_kind_are_found_apart_and_those_of_another_number_are_not(other, x):
    model, plan = build("test_resnet"), Plan()
    batches = counted(model)

    def passes(x, dtype=torch.float32):
        batches.clear()
        model.to(x.dtype)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), plan.folded(model, x):
            assert num_folded(model) == 15 + 1
        return len(batches)

    assert [passes(x[:1]), passes(x[:2]), passes(*other(model, x[:1])), passes(*other(model, x[:1]))] == [2, 0, 2, 0]
    assert passes(x[:1]) == 0, "and both are kept"


def test_both_branches_of_a_split_norm_are_folded_in_turn(x):
    model, x = with_statistics(convert_split_norm(build("test_resnet"))).double(), x.double()
    for branch in ("main", "aux", "main"):
        with norm_branch(model, branch):
            wanted = model(x)
            with folded(model, x[:1]):
                assert num_folded(model) == ALL["test_resnet"] and relative(model(x), wanted) < 1e-9


def test_a_plan_holds_what_it_found_and_a_new_one_finds_what_is_now(x):
    """A norm whose statistics have come to be such that its folding changes the logits is left by a new plan."""
    model = with_statistics(Net(lambda net, x: net.norm(net.conv(x))))
    plan, seen = Plan(), []
    for each in (plan, plan, Plan(), plan):
        with each.folded(model, x[:1]):
            seen.append(num_folded(model))
        nn.init.constant_(model.norm.running_mean, 1e10)
        nn.init.constant_(model.conv.bias, 1e10)
    assert seen == [1, 1, 0, 1]


def test_a_plan_keeps_in_mind_that_nothing_may_be_folded(x):
    model, plan = with_statistics(Net(UNSAFE["output used twice"])), Plan()
    batches = counted(model)
    for expected in (1, 0):
        batches.clear()
        with plan.folded(model, x[:1]):
            assert len(batches) == expected and num_folded(model) == 1


class Unread(nn.Conv2d):
    def forward(self, x):
        return torch.conv2d(x, self.weight)


class Gain(nn.BatchNorm2d):
    def forward(self, x):
        return (1 + self.bias.sum()) * super().forward(x)


class Positive(nn.BatchNorm2d):
    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight.abs(), self.bias)


def no_bias(conv=nn.Conv2d, norm=nn.BatchNorm2d, run=lambda net, x: net.norm(net.conv(x))):
    net = Net(run)
    net.conv, net.norm = conv(3, 3, 1, bias=False), norm(3)
    return net


def bias_elsewhere():
    net = Net(lambda net, x: net.norm(net.conv(x)) + net.conv.bias.sum())
    net.conv.bias.zero_()
    return net


class Tokens(nn.Sequential):
    """The norm is over the 3 rows of an image, the layer over its columns."""

    def __init__(self, width):
        super().__init__(
            nn.Flatten(2), nn.Linear(64 * 64, width), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(3 * width, 5)
        )


# As initialised, where a wrong fold would change no logit.
BLIND = {
    "a bias that is not read": lambda: no_bias(conv=Unread),
    "a bias that is used elsewhere": bias_elsewhere,
    "a norm that does more": lambda: no_bias(norm=Gain),
    "a norm with a weight of its own": lambda: no_bias(norm=Positive),
    "other channels": lambda: Tokens(3),
    "other channels, of another number": lambda: Tokens(7),
    "no logits yet": lambda: nn.Sequential(no_bias(norm=Gain), nn.Linear(3, 2)),
}


@pytest.mark.parametrize("make", BLIND.values(), ids=BLIND)
@torch.no_grad()
def test_what_is_not_known_is_not_folded_where_values_prove_nothing(make, x):
    torch.manual_seed(0)
    model = make().eval()
    if isinstance(model[-1] if isinstance(model, nn.Sequential) else None, nn.Linear):
        model[-1].weight.zero_(), model[-1].bias.zero_()
    for _ in range(2):
        wanted = model(x)
        with folded(model, x[:1]):
            assert num_folded(model) == 0 and torch.equal(model(x), wanted)
        for parameter in model.parameters():
            parameter.normal_()


def test_a_pass_that_failed_once_is_tried_again(x):
    model, plan = build("test_resnet"), Plan()
    forward = model.forward
    model.forward = lambda x: (_ for _ in ()).throw(MemoryError)
    with plan.folded(model, x[:1]):
        assert num_folded(model) == 1  # the test's own forward
    model.forward = forward
    with plan.folded(model, x[:1]):
        assert num_folded(model) == 15 + 1


def test_an_empty_batch_is_not_looked_at(x):
    model = build("test_resnet")
    found, _ = PGD(steps=1).perturb(model, x[:0], torch.zeros(0, dtype=torch.long))
    assert found.shape == x[:0].shape


class Asking(nn.Module):
    """It goes by the type of its layer's weight."""

    def __init__(self, run):
        super().__init__()
        self.conv, self.head, self.run = nn.Conv2d(3, 3, 1), nn.Linear(3, 4), run

    def forward(self, x):
        return self.head(self.run(self, x).float().mean((2, 3)))


ASKING = {
    "its input": lambda net, x: (lambda x: net.conv(x) + x)(x.to(net.conv.weight.dtype)),
    "its output": lambda net, x: torch.zeros_like(x, dtype=net.conv.weight.dtype).index_put(
        (torch.arange(len(x)),), net.conv(x).float()
    ),
}


@pytest.mark.parametrize("run", ASKING.values(), ids=ASKING)
def test_a_weight_whose_type_is_asked_for_is_not_cast(run, x):
    model = Asking(run).eval()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(x)
        with folded(model, x[:1]):
            assert model.conv.weight.dtype == torch.float32 and model.head.weight.dtype == torch.bfloat16
            assert torch.equal(model(x), wanted)


def test_a_folded_model_that_fails_is_put_back(x, monkeypatch):
    model = with_statistics(Net(lambda net, x: net.norm(net.conv(x)) if num_folded(net) == 0 else 1 / 0))
    with folded(model, x[:1]):
        assert num_folded(model) == 0
        model(x)


@pytest.mark.parametrize("build_one", [lambda: build("test_resnet"), lambda: nn.Conv2d(3, 3, 1)], ids=["net", "layer"])
def test_a_model_is_freed_as_it_would_be_without(build_one, x):
    model = build_one()
    with torch.autocast("cpu", torch.bfloat16), folded(model, x[:1]):
        pass
    alive = weakref.ref(model)
    gc.disable()
    del model
    gc.enable()
    assert alive() is None


def test_a_method_and_the_network_of_its_plan_are_freed(x):
    method = ARAT(timm.create_model("test_resnet", num_classes=10), attack=PGD(steps=1))
    method.perturb(x, torch.zeros(3, dtype=torch.long))
    assert method._plan._found
    alive = weakref.ref(method), weakref.ref(method.model)
    gc.disable()
    del method
    gc.enable()
    assert [each() for each in alive] == [None, None]


def test_a_model_that_refers_to_itself_is_collected(x):
    model = build("test_resnet")
    model.conv1.parent = [model]
    with folded(model, x[:1]):
        pass
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_parametrised_weights_stay_as_they_are(x):
    model = with_statistics(Net(lambda net, x: net.norm(net.conv(x))))
    nn.utils.parametrizations.weight_norm(model.conv)
    with folded(model, x[:2]):
        assert num_folded(model) == 0


def test_a_model_that_checkpoints_stays_as_it_is(x):
    model = build("test_resnet")
    model.set_grad_checkpointing()
    with folded(model, x[:2]):
        assert num_folded(model) == 0


def test_a_model_that_cannot_run_on_the_sample_stays_as_it_is(x):
    model = with_statistics(Net(lambda net, x: net.norm(net.conv(x.view(3, 3, 64, 64)))))
    with folded(model, x[:2]):
        assert num_folded(model) == 0
        model(x)


def test_it_works_under_autocast_and_channels_last(x):
    model = build("test_resnet").to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(x)
        with folded(model, x[:2]):
            assert num_folded(model) == 15
            assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
            found, _ = logits_and_gradient(model, x)
    assert relative(found, wanted) < 0.05


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_under_autocast_weights_are_cast_once_and_nothing_rounds_otherwise(name):
    """In models without a BatchNorm; where one is folded, its layer has the cast weight as well."""
    model = build(name)
    x = torch.rand(3, *model.pretrained_cfg["input_size"])
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    with torch.autocast("cpu", torch.bfloat16):
        wanted = logits_and_gradient(model, x)
        with folded(model, x[:1]):
            assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
            found = logits_and_gradient(model, x)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_tied_weights_stay_as_they_are(x):
    model = Net(lambda net, x: net.other(net.conv(x)))
    model.other.weight = model.conv.weight
    with torch.autocast("cpu", torch.bfloat16), folded(model.eval(), x[:1]):
        assert model.conv.weight.dtype == torch.float32


def test_the_attack_folds_in_eval_mode_only(x):
    seen = []
    model = build("test_resnet").requires_grad_()
    forward = model.forward_head
    model.forward_head = lambda *args, **kwargs: seen.append(num_folded(model) - 1) or forward(*args, **kwargs)
    y = torch.zeros(3, dtype=torch.long)
    for mode, most in (("eval", 15), ("batch", 0), ("train", 0)):
        seen.clear()
        PGD(steps=2, norm_mode=mode)(model, x, y)
        assert max(seen) + 1 == most, mode
