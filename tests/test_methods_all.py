"""What holds of every training method: a new row of the table is checked here as it stands."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import timm_arat.methods
from timm_arat import PGD, Standard
from timm_arat.methods import CONFIGS, Frozen, Method, method_class, method_name
from timm_arat.methods._divergence import DivergenceAttack

ATTACK = PGD(eps=0.1, steps=2)
# Every method as its defaults have it, and the ways through ARAT that compute otherwise.
CASES = [(name, {}) for name in CONFIGS] + [
    ("arat", {"anchor": "none", "predictor": "none"}),
    ("arat", {"split_norm": "none"}),
    ("arat", {"noisy_clean": True}),
    ("arat", {"auto_balance": False, "layers": ("layer1", "layer2")}),
    ("arat", {"anchor": "teacher"}),
    ("arat", {"anchor": "teacher", "split_norm": "none", "predictor": "none"}),
    ("madry", {"label_smoothing": 0.1}),
    ("lbgat", {"beta": 6.0, "detach": True}),
    ("lbgat", {"beta": 6.0, "split_norm": "batch"}),
    ("lbgat", {"clean_pass": False}),
    ("dajat", {"views": 0}),
    ("dajat", {"views": 1, "split_norm": "none", "label_smoothing": 0.1}),
    ("arrest", {"threshold": 0.1}),
]
each_case = pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
each_method = pytest.mark.parametrize("name", CONFIGS)


def backbone(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    shape = {"layers": (1, 1), "channels": (8, 12), "stem_width": 8, "zero_init_last": False}
    return timm.create_model("resnet20_cifar", num_classes=5, **shape)


def plain(name: str, config: object = None, attack: PGD | None = None, **settings) -> Method:
    """The method called `name`, with a teacher where it needs one."""
    kind = method_class(name)
    needed = kind.needs_teacher(replace(config or CONFIGS[name](), **settings))
    return kind(backbone(), config, attack=attack, teacher=backbone(seed=1) if needed else None, **settings)


def build(name: str, settings: dict | None = None, dtype: torch.dtype = torch.float64) -> Method:
    method = plain(name, attack=ATTACK, **(settings or {})).to(dtype).train()
    method.set_clean_accuracy(0.3)
    return method


def batch(n: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 8, 8, generator=generator).to(dtype), torch.randint(5, (n,), generator=generator)


def perturbed(method: Method, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return method.perturb(x, y)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_verbs_in_turn_are_bitwise_the_one_call_that_does_both(name, settings, dtype):
    x, y = batch(dtype=dtype)
    method = build(name, settings, dtype)
    other = copy.deepcopy(method)
    torch.manual_seed(7)
    whole = method(x, y)
    halves = other(*_with_labels(perturbed(other, x, y), y))
    whole["loss"].backward()
    halves["loss"].backward()
    assert list(whole) == list(halves)
    for key in whole:
        assert torch.equal(whole[key], halves[key]), key
    for (key, p), q in zip(method.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None and torch.equal(p.grad, q.grad), key
    for (key, a), b in zip(method.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), key


def _with_labels(images: tuple[Tensor, Tensor], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return images[0], y, images[1]


@each_case
def test_perturb_leaves_no_trace_in_the_method(name, settings):
    x, y = batch()
    method = build(name, settings)
    before = copy.deepcopy(method.state_dict())
    modes = [module.training for module in method.modules()]
    seen, x_adv = method.perturb(x, y)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert [module.training for module in method.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in method.parameters())
    views = 1 + getattr(method.config, "views", 0)
    assert seen.shape == x_adv.shape == (views * len(x), *x.shape[1:]) and not x_adv.requires_grad
    assert torch.equal(x_adv, seen) != method.attacks


@each_case
def test_the_weighted_terms_are_the_loss_and_each_has_its_own_gradients(name, settings):
    x, y = batch()
    method = build(name, settings)
    x, x_adv = perturbed(method, x, y)
    other = copy.deepcopy(method)
    out = other(x, y, x_adv)
    out["loss"].backward()

    terms = method.terms(x, y, x_adv)
    assert terms.losses.keys() == terms.weights.keys()
    expected = sum(terms.weights[each] * terms.losses[each] for each in terms.losses)
    torch.testing.assert_close(terms.loss(), expected)
    torch.testing.assert_close(out["loss"], expected.detach(), check_dtype=False)
    for each, value in terms.losses.items():
        assert value.ndim == 0 and value.requires_grad, each
        torch.testing.assert_close(out[each], value.detach())
        torch.testing.assert_close(terms.loss(each), terms.weights[each] * value)
    torch.testing.assert_close(out["output"], terms.output)

    parameters = dict(method.named_parameters())
    total = {key: torch.zeros_like(p) for key, p in parameters.items()}
    for each, value in terms.losses.items():
        grads = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
        assert any(grad is not None and grad.abs().max() > 0 for grad in grads), each
        for key, grad in zip(parameters, grads, strict=True):
            total[key] += 0 if grad is None else terms.weights[each] * grad
    for key, p in other.named_parameters():
        torch.testing.assert_close(p.grad, total[key], msg=lambda m, key=key: f"{key}: {m}")
    for (key, a), b in zip(method.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, key=key: f"{key}: {m}")


@each_case
def test_one_hot_labels_are_classes(name, settings):
    x, y = batch()
    method = build(name, settings)
    other = copy.deepcopy(method)
    shares = F.one_hot(y, 5).double()
    images, soft_images = perturbed(method, x, y), perturbed(other, x, shares)
    for found, wanted in zip(soft_images, images, strict=True):
        assert torch.equal(found, wanted)
    hard, soft = method(images[0], y, images[1]), other(images[0], shares, images[1])
    for key in hard:
        torch.testing.assert_close(soft[key], hard[key], msg=lambda m, key=key: f"{key}: {m}")


@each_case
def test_the_loss_of_mixed_labels_is_the_mix_of_the_losses(name, settings):
    if name == "mart":
        pytest.skip("MART's margin leaves out the class of the largest share, so it is not linear in the shares")
    x, y = batch()
    method = build(name, settings)
    x, x_adv = perturbed(method, x, y)
    one, other = F.one_hot(y, 5).double(), F.one_hot((y + 2) % 5, 5).double()
    losses = [copy.deepcopy(method)(x, shares, x_adv)["loss"] for shares in (one, other, 0.3 * one + 0.7 * other)]
    torch.testing.assert_close(losses[2], 0.3 * losses[0] + 0.7 * losses[1])
    assert (losses[0] - losses[1]).abs() > 1e-3, "labels matter, or this test says nothing"


@each_method
def test_mixed_labels_train(name):
    x, y = batch()
    method = build(name)
    mix = 0.3 * F.one_hot(y, 5).double() + 0.7 * F.one_hot(y.roll(1), 5).double()
    out = method(x, mix)
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    accuracies = [value for key, value in out.items() if key.startswith("acc_")]
    assert accuracies and all(0 <= float(value) <= 1 for value in accuracies)


@pytest.mark.parametrize("name", [name for name in CONFIGS if method_class(name).attacks])
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda x, y: (x, y[:-1]), r"labels must be 6 integers, or floats 6xK .* these are \(5,\) torch.int64"),
        (lambda x, y: (x, F.one_hot(y, 5)), r"these are \(6, 5\) torch.int64"),
        (lambda x, y: (x, y.double()), r"these are \(6,\) torch.float64"),
        (lambda x, y: (x, F.one_hot(y, 5).double()[:3]), r"these are \(3, 5\) torch.float64"),
        (lambda x, y: (x, F.one_hot(y, 5).double()[None]), r"these are \(1, 6, 5\) torch.float64"),
        (lambda x, y: (x * 255, y), r"images must be in \[0, 1\]"),
        (lambda x, y: (x[0], y), r"images must be NxCxHxW"),
    ],
    ids=["fewer", "integer shares", "float classes", "fewer shares", "more dimensions", "bytes", "one image"],
)
def test_labels_and_images_of_a_wrong_shape_are_refused(name, wrong, text):
    with pytest.raises(ValueError, match=text):
        build(name).perturb(*wrong(*batch()))


@pytest.mark.parametrize("name", [name for name in CONFIGS if method_class(name).attacks])
def test_what_may_be_folded_is_found_once_an_epoch(name):
    x, y = batch()
    method = build(name)
    passes = []
    forward = method.model.forward
    method.model.forward = lambda *args: passes.append(args) or forward(*args)

    def count() -> int:
        passes.clear()
        method.perturb(x, y)
        return len(passes)

    first, again = count(), count()
    method.begin_epoch()
    looks = 2 * (2 if name == "dajat" else 1)  # in each branch that is attacked: to look, and to prove it
    assert [first, again, count(), count()] == [again + looks, again, again + looks, again]


# What becomes of the networks that a method holds


class Distilled(Standard):
    """Plain training with a network that is only used, and one that learns along."""

    trained_along = ("helper",)

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.helper = nn.Linear(5, 5)
        self.teacher = Frozen(backbone(seed=1))


def test_a_network_that_is_only_used_is_no_part_of_the_method():
    method = Distilled(backbone())
    teacher = method.teacher.module
    before = copy.deepcopy(teacher.state_dict())
    own = {id(t) for t in (*teacher.parameters(), *teacher.buffers())}
    assert not own & {id(t) for t in (*method.parameters(), *method.buffers())}
    assert not any("teacher" in key for key in method.state_dict())
    assert len(method.state_dict()) == len(method.model.state_dict()) + 2, "the helper"
    assert teacher not in list(method.modules())

    method.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    x, y = batch(dtype=torch.float32)
    answer = method.teacher(x)
    assert not answer.requires_grad and torch.equal(answer, teacher(x))
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method(x, y)["loss"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_copy_of_a_method_shares_the_network_that_is_only_used():
    method = Distilled(backbone())
    other = copy.deepcopy(method)
    assert other.teacher is method.teacher
    assert not {id(p) for p in other.parameters()} & {id(p) for p in method.parameters()}
    other.load_state_dict(method.state_dict())


def test_the_network_that_is_only_used_follows_the_method_to_a_type_and_a_device():
    method = Distilled(backbone()).to(torch.float64)
    assert {p.dtype for p in method.teacher.module.parameters()} == {torch.float64}
    assert method.teacher(batch()[0]).dtype == torch.float64
    method.to("meta")
    assert {p.device.type for p in method.teacher.module.parameters()} == {"meta"}


def test_what_is_trained_along_is_trained_and_saved_and_in_no_average():
    method = Distilled(backbone())
    assert {"helper.weight", "helper.bias"} <= method.state_dict().keys()
    assert {"helper.weight", "helper.bias"} <= {name for name, _ in method.named_parameters()}
    averaged = method.averaged()
    assert list(averaged) == ["network"] and averaged["network"] is method.network
    assert not any("helper" in key or "teacher" in key for key in averaged.state_dict())


@each_method
def test_an_average_takes_what_a_method_registers(name):
    method = build(name)
    assert set(method.averaged()) == {key for key, _ in method.named_children()} - set(method.trained_along)
    assert "network" in method.averaged()


@each_method
def test_a_second_network_is_given_where_it_is_needed_and_nowhere_else(name):
    kind = method_class(name)
    if kind.needs_teacher(CONFIGS[name]()):
        with pytest.raises(ValueError, match=f"{kind.__name__} needs a second network.*teacher.name"):
            kind(backbone())
    else:
        with pytest.raises(ValueError, match=f"{kind.__name__} with these settings has no use for a teacher"):
            kind(backbone(), teacher=backbone(seed=1))


@pytest.mark.parametrize(("name", "settings"), [("hat", {}), ("arrest", {}), ("arat", {"anchor": "teacher"})], ids=str)
def test_a_teacher_that_is_only_used_is_in_no_state_average_or_optimizer(name, settings):
    method = build(name, settings)
    assert isinstance(method.teacher, Frozen)
    assert not any("teacher" in key for key in (*method.state_dict(), *method.averaged().state_dict()))
    own = {p.data_ptr() for p in method.parameters()}
    assert not own & {p.data_ptr() for p in method.teacher.module.parameters()}, "nor shared with the model"
    before = copy.deepcopy(method.teacher.module.state_dict())
    method(*batch())["loss"].backward()
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.module.state_dict().items())
    assert all(p.grad is None for p in method.teacher.module.parameters())


@pytest.mark.parametrize("name", ["standard", "madry", "dajat", "advprop"])
@pytest.mark.parametrize("wrong", [-0.1, 1.0])
def test_a_label_smoothing_that_leaves_no_label_is_refused(name, wrong):
    with pytest.raises(ValueError, match=rf"label_smoothing={wrong} is not in \[0, 1\)"):
        CONFIGS[name](label_smoothing=wrong)


# The table


@each_method
def test_every_row_has_a_class_settings_and_a_file(name):
    cls = method_class(name)
    assert issubclass(cls, Method) and cls.Config is CONFIGS[name] and cls.__module__ == f"timm_arat.methods.{name}"
    assert (Path(timm_arat.methods.__file__).parent / f"{name}.py").is_file()
    assert getattr(timm_arat.methods, cls.__name__) is getattr(timm_arat, cls.__name__) is cls
    assert method_name(CONFIGS[name]()) == name
    assert plain(name).config == CONFIGS[name]() and plain(name).attack == PGD()


@each_method
def test_settings_by_name_win_over_those_of_a_config_and_an_unknown_one_is_an_error(name):
    cls, config = method_class(name), CONFIGS[name]()
    for wrong in ({"wieght": 1.0}, {"eps": 0.1}, {"steps": 3}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            cls(backbone(), **wrong)  # before a teacher is asked for
    field = next(each for each, value in vars(config).items() if isinstance(value, float))
    assert getattr(plain(name, config, **{field: 0.125}).config, field) == 0.125
    assert config == CONFIGS[name](), "which is left as it was"


@each_case
def test_an_attack_of_a_call_is_checked_as_the_method_s_own(name, settings):
    method = build(name, settings)
    if not method.attacks:
        return
    x, y = batch()
    with pytest.raises(ValueError, match="attack.targeted"):
        method.perturb(x, y, attack=replace(ATTACK, targeted=True))
    if isinstance(method, DivergenceAttack):
        with pytest.raises(ValueError, match="needs attack.random_start"):
            method.perturb(x, y, attack=replace(ATTACK, random_start=False))


@pytest.mark.parametrize("name", ["hat", "lbgat"])
def test_a_teacher_of_other_classes_is_refused(name):
    teacher = timm.create_model("resnet20_cifar", num_classes=7, layers=(1, 1), channels=(8, 12))
    with pytest.raises(ValueError, match="the teacher has 7 classes and the model 5"):
        method_class(name)(backbone(), teacher=teacher)


def test_arat_says_why_a_batch_of_one_image_cannot_train():
    with pytest.raises(ValueError, match=r"single image.*predictor='none'"):
        build("arat")(*batch(1))
    build("arat", {"predictor": "none"})(*batch(1))


def test_a_balance_that_is_not_used_is_not_logged():
    assert "balance" in build("arat")(*batch())
    assert "balance" not in build("arat", {"auto_balance": False})(*batch())
