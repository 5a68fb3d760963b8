"""Properties of every attack. A new attack is one row of `ATTACKS`; all of them are then checked for it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from timm.layers import DropBlock2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_arat import PGD, convert_split_norm, in_pixels, norm_branch
from timm_arat.attacks import CrossEntropy, divergence, search
from timm_arat.attacks._balls import BALLS

ATTACKS = [
    PGD(steps=3),
    PGD(eps=0.1, steps=2, random_start=False),
    PGD(norm="l2", eps=0.5, steps=3),
    PGD(norm="l2", eps=2.0, steps=3, random_start=False),
    PGD(norm="l1", eps=4.0, steps=3),
    PGD(norm="l1", eps=12.0, steps=3, random_start=False),
    PGD(steps=2, restarts=2),
    PGD(steps=2, keep_best=True),
    PGD(steps=2, targeted=True),
    PGD(steps=2, norm_mode="batch"),
    PGD(steps=2, norm_mode="train"),
    PGD(norm="l1", eps=4.0, steps=2, restarts=2, keep_best=True, targeted=True, norm_mode="batch"),
]
each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


class Net(nn.Module):
    """Two convolutions, BatchNorm and dropout; images of 8x8 to 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.bn1(self.conv1(x)))
        x = F.gelu(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean((2, 3)))) * 5


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.bn1, model.bn2):  # running statistics that differ from a batch's
        norm.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 1)  # type: ignore[union-attr]
    return model.eval()


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, 8, 8, generator=g)
    # A third of the pixels at the edge of the box, where projections differ.
    x = torch.where(torch.rand(x.shape, generator=g) < 0.3, x.round(), x)
    return x, torch.randint(4, (n,), generator=g)


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), ord=ORDER[norm], dim=1)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x).double(), y, reduction="none")


@contextmanager
def calls(model: nn.Module) -> Iterator[list[None]]:
    seen: list[None] = []
    handle = model.register_forward_hook(lambda *_: seen.append(None))
    try:
        yield seen
    finally:
        handle.remove()


# What an attack may reach


@each_attack
def test_stays_in_its_ball_and_in_the_pixel_box(attack: PGD) -> None:
    model, (x, y) = net(), batch()
    for seed in range(3):
        torch.manual_seed(seed)
        x_adv = attack(model, x, y)
        assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
        assert 0 <= x_adv.min() and x_adv.max() <= 1
        assert (distance(x_adv, x, attack.norm) <= attack.radius * (1 + 1e-6)).all()
        assert (distance(x_adv, x, attack.norm) > 0).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 1.5), ("l1", 2.0)])
def test_starts_fill_the_ball(norm: str, eps: float) -> None:
    x = torch.full((400, 3, 4, 4), 0.5)
    torch.manual_seed(0)
    start = BALLS[norm].start(x, eps)
    reach = distance(start, x, norm)
    assert (reach <= eps * (1 + 1e-6)).all() and reach.max() > 0.9 * eps
    assert (start - x).mean().abs() < 0.02 * eps, "no side is preferred"
    # P(radius <= r) = (r / eps)^d in d dimensions, for each of the norms; the median of d = 48.
    assert reach.median().item() == pytest.approx(eps * 0.5 ** (1 / 48), rel=0.02)


# Arguments and model are left as they were


@each_attack
@pytest.mark.parametrize("caller", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_leaves_images_and_labels_alone(attack: PGD, caller: Any) -> None:
    model, other, again = net(), net(), net()
    with caller():
        x, y = (t.clone() for t in batch())
        x_before, y_before = x.clone(), y.clone()
        x_adv = attack(model, x, y)
        assert torch.equal(x, x_before) and torch.equal(y, y_before)
        assert x_adv.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        assert torch.is_grad_enabled() == (caller is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (caller is torch.inference_mode)
    torch.manual_seed(5)
    first = attack(other, *batch())
    with caller():
        torch.manual_seed(5)
        assert torch.equal(attack(again, *batch()), first), "the caller's grad mode does not weaken the attack"


def test_images_that_require_a_gradient_get_none() -> None:
    x, y = batch()
    x.requires_grad_()
    x_adv = PGD(steps=2)(net(), x, y)
    assert x.requires_grad and x.grad is None and x.grad_fn is None and not x_adv.requires_grad


def mixed(train: bool) -> Net:
    """A model with modes, requires_grad and .grad that no single call would restore."""
    model = net()
    model.train(train)
    model.bn2.train(not train)
    model.drop.train(train)
    model.conv1.train(not train)
    model.conv2.weight.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    model.conv1.weight.grad = torch.full_like(model.conv1.weight, 0.25)
    model.fc.bias.grad = torch.full_like(model.fc.bias, 0.5)
    return model


class Failing(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("inside the model")


@each_attack
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("fail", [False, True], ids=["", "error"])
def test_restores_modes_gradients_and_requires_grad(attack: PGD, train: bool, fail: bool) -> None:
    model = mixed(train)
    modes = {name: m.training for name, m in model.named_modules()}
    tracking = [m.track_running_stats for m in (model.bn1, model.bn2)]
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    if fail:
        model.__class__ = Failing
        with pytest.raises(KeyError):
            attack(model, *batch())
    else:
        attack(model, *batch())
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert [m.track_running_stats for m in (model.bn1, model.bn2)] == tracking
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    for name, p in model.named_parameters():
        before = grads[name]
        if before is None:
            assert p.grad is None, name
        else:
            assert p.grad is not None and torch.equal(p.grad, before), name


@each_attack
def test_moves_no_weight_and_no_statistic_unless_asked(attack: PGD) -> None:
    model = mixed(True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with calls(model) as seen:
        attack(model, *batch())
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    statistics = {key for key in before if "running" in key or "tracked" in key}
    assert moved == (statistics if attack.norm_mode == "train" else set())
    for norm in (model.bn1, model.bn2):
        assert norm.num_batches_tracked == (len(seen) if attack.norm_mode == "train" else 0)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("norm_mode", ["eval", "batch", "train"])
def test_a_plain_attack_costs_one_pass_a_step(steps: int, norm_mode: Any) -> None:
    model = net()
    with calls(model) as seen:
        PGD(steps=steps, norm_mode=norm_mode)(model, *batch())
    assert len(seen) == steps
    assert model.bn1.num_batches_tracked == (steps if norm_mode == "train" else 0)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for its device: a value that is asked for, a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += masked or name in ("_local_scalar_dense", "equal", "nonzero", "masked_select")
        return func(*args, **(kwargs or {}))


@each_attack
def test_no_step_of_an_attack_waits_for_the_device(attack: PGD) -> None:
    counts = []
    for steps in (1, 6):
        with Waits() as waits:
            replace(attack, steps=steps)(net(), *batch())
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 4, "range of the images, and whether the folded network is the network"


def test_a_wait_would_be_seen() -> None:
    x = torch.rand(3)
    for wait in (lambda: float(x.sum()), lambda: bool((x > 2).any()), lambda: x[x > 0.5], lambda: torch.equal(x, x)):
        with Waits() as waits:
            wait()
        assert waits.count == 1


# BatchNorm during the attack


def modes_inside(norm_mode: Any, model: nn.Module) -> dict[str, bool]:
    inside: dict[str, bool] = {}
    model.register_forward_pre_hook(lambda *_: inside.update((n, m.training) for n, m in model.named_modules()))
    PGD(steps=1, norm_mode=norm_mode)(model, *batch())
    return inside


def test_norm_mode_decides_which_modules_train() -> None:
    assert not any(modes_inside("eval", net().train()).values())
    assert all(modes_inside("train", net()).values())
    assert {name for name, training in modes_inside("batch", net()).items() if training} == {"bn1", "bn2"}


def test_batch_mode_leaves_the_drop_inside_a_norm_in_eval_mode() -> None:
    model = net()
    model.bn1 = timm.layers.BatchNormAct2d(8, drop_layer=DropBlock2d)
    assert {n for n, training in modes_inside("batch", model).items() if training} == {"bn1", "bn2"}


def test_batch_mode_uses_the_statistics_of_the_batch() -> None:
    x, y = batch()
    x = x.double()
    model, by_hand = net().double(), net().double()
    for norm in (by_hand.bn1, by_hand.bn2):
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    attack = PGD(steps=3, random_start=False)
    got = replace(attack, norm_mode="batch")(model, x, y)
    torch.testing.assert_close(got, textbook(by_hand, x, y, attack, x))
    assert not torch.equal(got, attack(model, x, y)), "which differ from the running ones"


def test_the_attack_sees_the_branch_of_its_caller() -> None:
    x, y = batch()
    model = convert_split_norm(net())
    with torch.no_grad():
        for norm in (model.bn1, model.bn2):
            norm.aux_bn[0].weight.normal_()  # type: ignore[operator, union-attr]
    attack = PGD(steps=2, random_start=False)
    main = attack(model, x, y)
    with norm_branch(model, "aux"):
        aux = attack(model, x, y)
    assert torch.equal(main, attack(net(), x, y)) and not torch.equal(main, aux)
    attack_train = replace(attack, norm_mode="train")
    attack_train(model, x, y)
    assert model.bn1.num_batches_tracked == 2 and model.bn1.aux_bn[0].num_batches_tracked == 0  # type: ignore[operator, union-attr]


# It is PGD


def textbook(model: nn.Module, x: Tensor, y: Tensor, attack: PGD, start: Tensor) -> Tensor:
    """arXiv:1706.06083, Eq. 2 of Sec. 2.1, as plainly as it goes; projections of l2 and l1 by general solvers."""
    sign = -1 if attack.targeted else 1
    x_adv = start
    for _ in range(attack.steps):
        x_adv = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(sign * F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        with torch.no_grad():
            if attack.norm == "linf":
                x_adv = x_adv + attack.step_length * grad.sign()
                x_adv = (x + (x_adv - x).clamp(-attack.radius, attack.radius)).clamp(0, 1)
            else:
                direction = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                x_adv = x_adv + attack.step_length * direction
                x_adv = torch.stack([slow_projection(v, c, attack.radius, 2) for v, c in zip(x_adv, x, strict=True)])
    return x_adv


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.norm == "linf"], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linf_is_the_textbook_attack(attack: PGD, dtype: torch.dtype) -> None:
    attack = replace(attack, norm_mode="eval", restarts=1, keep_best=False, steps=5)
    model, (x, y) = net().to(dtype), batch()
    x = x.to(dtype)
    torch.manual_seed(3)
    got = attack(model, x, y)
    torch.manual_seed(3)
    noise = torch.empty_like(x).uniform_(-attack.radius, attack.radius)
    wanted = textbook(model, x, y, attack, (x + noise).clamp(0, 1) if attack.random_start else x)
    # Float32 gradients near zero may round to another sign: a handful of entries at most.
    differ = (got - wanted).abs() > 1e-6
    assert differ.float().mean() < (0.01 if dtype is torch.float32 else 1e-9)


class Interacting(nn.Module):
    """A network whose images act on each other, with logits in float64 for the loss, as the attack has them.

    Of one image in three the class is certain, so that images differ in the size of their gradients.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        kwargs = {"layers": (1, 1), "channels": (8, 12), "zero_init_last": False} if name == "resnet20_cifar" else {}
        self.model = timm.create_model(name, num_classes=4, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        certain = torch.arange(len(x)).view(-1, 1) % 3 == 0
        return self.model(x) * torch.where(certain, 8.0, 1.0)


@pytest.mark.parametrize("name", ["resnet20_cifar", "test_resnet"])
@pytest.mark.parametrize("norm_mode", ["batch", "train"])
@pytest.mark.parametrize("random_start", [False, True])
def test_with_statistics_of_the_batch_it_is_bit_for_bit_the_textbook_attack(
    name: str, norm_mode: Any, random_start: bool
) -> None:
    """In float32: cross-entropy summed over the batch, nothing scaled, the network in train mode as it stands."""
    x, y = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 4
    attack = PGD(eps=0.05, steps=5, norm_mode=norm_mode, random_start=random_start)
    model = Interacting(name)
    by_hand = copy.deepcopy(model).train()
    torch.manual_seed(3)
    found = attack(model, x, y)

    torch.manual_seed(3)
    x_adv = (x + torch.empty_like(x).uniform_(-0.05, 0.05)).clamp(0, 1) if random_start else x
    x_adv = torch.minimum(torch.maximum(x_adv, x - 0.05), x + 0.05).clamp(0, 1)
    for _ in range(5):
        x_adv = x_adv.clone().requires_grad_()
        loss = F.cross_entropy(by_hand(x_adv).double(), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x_adv)
        with torch.no_grad():
            x_adv = x_adv + attack.step_length * grad.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, x - 0.05), x + 0.05).clamp(0, 1)
    assert torch.equal(found, x_adv)
    if norm_mode == "train":
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), by_hand.buffers(), strict=True))


@pytest.mark.parametrize("norm_mode", ["batch", "train"])
def test_an_empty_batch_is_an_empty_answer(norm_mode: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert PGD(steps=2, norm_mode=norm_mode)(model, torch.zeros(0, 3, 8, 8), torch.zeros(0).long()).shape[0] == 0


def test_l2_is_the_textbook_attack() -> None:
    attack = PGD(norm="l2", eps=1.0, steps=2, random_start=False)
    model, (x, y) = net().double(), batch(2)
    x = x.double()
    torch.testing.assert_close(attack(model, x, y), textbook(model, x, y, attack, x), atol=2e-5, rtol=0)


# The projections are the nearest points


def slow_projection(point: Tensor, x: Tensor, eps: float, order: int) -> Tensor:
    """The nearest point to `point` in the eps-ball around x and in [0, 1], by a general-purpose solver."""
    p, c = point.double().flatten().numpy(), x.double().flatten().numpy()
    d = len(p)
    if order == 2:
        solved = minimize(
            lambda z: ((z - p) ** 2).sum(), c, jac=lambda z: 2 * (z - p), bounds=[(0, 1)] * d, method="SLSQP",
            constraints={"type": "ineq", "fun": lambda z: eps**2 - ((z - c) ** 2).sum(), "jac": lambda z: -2 * (z - c)},
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        z = solved.x
    else:  # z = c + plus - minus, which makes the l1 ball linear
        solved = minimize(
            lambda u: ((c + u[:d] - u[d:] - p) ** 2).sum(), np.zeros(2 * d),
            jac=lambda u: np.concatenate([2 * (c + u[:d] - u[d:] - p), -2 * (c + u[:d] - u[d:] - p)]),
            bounds=[(0, each) for each in 1 - c] + [(0, each) for each in c], method="SLSQP",
            constraints={"type": "ineq", "fun": lambda u: eps - u.sum(), "jac": lambda u: -np.ones(2 * d)},
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        z = c + solved.x[:d] - solved.x[d:]
    assert solved.status in (0, 8), solved.message  # 8: no better point can be told apart
    return torch.from_numpy(z).view_as(x).to(x.dtype)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("eps", [0.3, 1.5, 100.0])
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_projection_is_the_nearest_point_of_ball_and_box(norm: str, eps: float, spread: float) -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.rand(4, 1, 3, 4, generator=g, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=g) < 0.3, x.round(), x)
    point = x + spread * torch.randn(x.shape, generator=g, dtype=torch.float64)
    got = BALLS[norm].project(point, x, eps)
    wanted = torch.stack([slow_projection(p, c, eps, 2 if norm == "l2" else 1) for p, c in zip(point, x, strict=True)])
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)
    assert (distance(got, x, norm) <= eps * (1 + 1e-6)).all() and 0 <= got.min() and got.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_point_that_is_inside_is_not_moved(norm: str) -> None:
    x = torch.full((2, 3, 4, 4), 0.5)
    point = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(BALLS[norm].project(point, x, 3.0 if norm != "linf" else 0.2), point)
    assert torch.equal(BALLS[norm].project(x, x, 0.1), x)


# It is strong


@each_attack
def test_climbs_its_objective(attack: PGD) -> None:
    model, (x, y) = net(), batch(16)
    if attack.norm_mode != "eval":
        pytest.skip("the loss of one image is not its own under batch statistics")
    torch.manual_seed(0)
    x_adv = attack(model, x, y)
    gain = (loss_of(model, x_adv, y) - loss_of(model, x, y)) * (-1 if attack.targeted else 1)
    assert gain.mean() > 0.01 and (gain > 0).float().mean() > 0.9


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_larger_ball_and_more_steps_are_stronger(norm: Any) -> None:
    model, (x, y) = net(), batch(16)
    eps = {"linf": 0.02, "l2": 0.2, "l1": 1.5}[norm]
    weak = PGD(norm=norm, eps=eps, steps=1, random_start=False)
    losses = [
        loss_of(model, attack(model, x, y), y).mean()
        for attack in (weak, replace(weak, steps=10), replace(weak, steps=10, eps=2 * eps))
    ]
    assert losses[0] < losses[1] * 1.001 and losses[1] < losses[2]


def test_targeted_reaches_its_class() -> None:
    model, (x, _) = net(), batch(8)
    target = model(x).topk(2).indices[:, 1]
    attack = PGD(eps=0.5, steps=40, targeted=True)
    assert (model(attack(model, x, target)).argmax(-1) == target).all()
    assert (model(replace(attack, targeted=False)(model, x, target)).argmax(-1) != target).all()


def test_restarts_are_never_weaker_than_any_of_their_starts() -> None:
    model, (x, y) = net(), batch(16)
    one = PGD(steps=1, eps=0.1, step_size=0.02)
    torch.manual_seed(0)
    starts = torch.stack([loss_of(model, one(model, x, y), y) for _ in range(4)])
    torch.manual_seed(0)
    together = loss_of(model, replace(one, restarts=4)(model, x, y), y)
    torch.testing.assert_close(together, starts.amax(0), rtol=1e-6, atol=1e-7)
    assert (together > starts[0] + 1e-4).any(), "starts differ, or this test says nothing"


def test_keep_best_keeps_the_highest_loss_of_each_image() -> None:
    model, (x, y) = net(), batch(32)
    # Steps as long as the diameter overshoot: the last is often not the best.
    wild = PGD(eps=0.3, step_size=0.6, steps=5)
    steps = []
    for k in range(6):
        torch.manual_seed(0)
        if k == 0:
            ball = BALLS["linf"]
            steps.append(loss_of(model, ball.project(ball.start(x, wild.radius), x, wild.radius), y))
        else:
            steps.append(loss_of(model, replace(wild, steps=k)(model, x, y), y))
    torch.manual_seed(0)
    best = loss_of(model, replace(wild, keep_best=True)(model, x, y), y)
    torch.testing.assert_close(best, torch.stack(steps).amax(0), rtol=1e-6, atol=1e-7)
    assert (best > steps[-1] + 1e-4).any()


def test_an_objective_takes_the_place_of_the_cross_entropy_and_of_the_labels() -> None:
    model, (x, y) = net(), batch(16)

    def objective(logits: Tensor) -> Tensor:
        assert logits.dtype == torch.float64 and logits.shape == (len(x), 4)
        return logits[:, 2] - logits[:, 0]

    for attack in (PGD(steps=3), PGD(steps=3, restarts=3), PGD(norm="l2", eps=0.5, steps=3, keep_best=True)):
        found = []
        for labels in (y, (y + 1) % 4):
            torch.manual_seed(0)
            found.append(attack.perturb(model, x, labels, objective=objective).x_adv)
        torch.manual_seed(0)
        assert torch.equal(*found) and torch.equal(found[0], attack(model, x, y, objective))
        with torch.no_grad():
            assert (objective(model(found[0]).double()) > objective(model(x).double())).all()


def test_an_objective_is_climbed_by_its_gradient() -> None:
    """The divergence from the clean prediction, one step, against the step written out."""
    model, (x, y) = net().double(), batch()
    x = x.double()
    with torch.no_grad():
        objective = divergence(model(x))
    torch.manual_seed(0)
    got = PGD(steps=1, eps=0.1)(model, x, y, objective)
    torch.manual_seed(0)
    start = (x + torch.empty_like(x).uniform_(-0.1, 0.1)).clamp(0, 1).requires_grad_()
    p, q = model(x).softmax(-1).detach(), model(start).softmax(-1)
    torch.testing.assert_close(objective(model(start)), (p * (p / q).log()).sum(1))
    (grad,) = torch.autograd.grad((p * (p / q).log()).sum(), start)
    wanted = torch.minimum(torch.maximum(start + 0.1 * grad.sign(), x - 0.1), x + 0.1).clamp(0, 1)
    torch.testing.assert_close(got, wanted.detach())


# Randomness


@each_attack
def test_is_deterministic_under_torch_s_global_seed(attack: PGD) -> None:
    model, (x, y) = net(), batch()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(attack(model, x, y))
    if attack.norm_mode != "train":  # dropout and the moving statistics are part of the model then
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2]) != attack.random_start
    model, twin = net(), net()
    torch.manual_seed(0)
    again = attack(twin, x, y)
    torch.manual_seed(0)
    assert torch.equal(attack(model, x, y), again)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_draws_nothing_without_a_random_start(norm: Any) -> None:
    model = net()
    state = torch.get_rng_state()
    PGD(norm=norm, eps=0.5, steps=2, random_start=False)(model, *batch())
    assert torch.equal(torch.get_rng_state(), state)


# Gradients that are hard to see


class Scaled(nn.Module):
    """A model whose logits are `factor` times as large and computed in `dtype`."""

    def __init__(self, factor: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.factor, self.dtype = net().to(dtype), factor, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.dtype)) * self.factor


def confident_batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images with the class that the model already predicts."""
    x, _ = batch(12)
    with torch.no_grad():
        return x, model(x).argmax(-1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_confident_images_keep_their_gradient(norm: Any, dtype: torch.dtype) -> None:
    """Margins of about 140: p - 1 is zero in float32 (17) and in float64 (37), the gradient is not."""
    model = Scaled(600, dtype)
    x, y = confident_batch(model)
    assert margin(model, x, y).median() > 40, "confident, or this test says nothing"
    x_in = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(model(x_in), y, reduction="sum"), x_in)
    assert (plain.flatten(1).abs().amax(1) == 0).any(), "the plain gradient is lost"
    found = PGD(norm=norm, eps={"linf": 0.1, "l2": 1.0, "l1": 9.0}[norm], steps=3).perturb(model, x, y)
    assert not found.zero_grad.any() and found.x_adv.dtype == torch.float32
    assert (margin(model, found.x_adv, y) < margin(model, x, y)).all()


def margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x).double()
    true = logits.gather(1, y[:, None])
    return (true - logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)


def test_a_confident_image_is_attacked_as_an_unconfident_one() -> None:
    """Two classes: the gradient's direction does not depend on the logits' scale, so neither may a sign step."""

    class Two(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.model, self.factor = net().double(), factor

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)[:, :2] * self.factor

    x, y = batch()[0].double(), torch.tensor([0, 1, 0, 1, 0, 1])
    attack = PGD(steps=3, random_start=False)
    wanted = attack(Two(1.0), x, y)
    for factor in (1e-12, 100.0, 1e3, 1e6, 1e30):
        assert torch.equal(attack(Two(factor), x, y), wanted), factor


@pytest.mark.parametrize("factor", [1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_that_are_enlarged_make_no_image_look_robust(factor: float, dtype: torch.dtype) -> None:
    """Of margins from 745 on the cross-entropy itself is zero in float64, and its gradient with it.

    With more than two classes the direction depends on the scale of the logits: enlarged, the attack is the one that
    climbs the strongest other class less the true one, bit for bit.
    """
    plain = net().to(dtype)
    model = copy.deepcopy(plain)
    with torch.no_grad():
        model.fc.weight.mul_(factor), model.fc.bias.mul_(factor)
    x, y = confident_batch(plain.float())
    plain.to(dtype)
    x = x.to(dtype)
    loss = CrossEntropy(y)
    assert PGD().perturb(model, x, y, objective=lambda z: loss(z)).zero_grad.all(), "or this test says nothing"

    def strongest_other(logits: Tensor) -> Tensor:
        rows = y[:, None]
        return logits.scatter(1, rows, -torch.inf).amax(1) - logits.gather(1, rows).squeeze(1)

    for attack in (PGD(eps=0.1, steps=5), PGD(eps=0.1, steps=3, restarts=3), PGD(eps=0.1, steps=3, keep_best=True)):
        torch.manual_seed(0)
        found = attack.perturb(model, x, y)
        torch.manual_seed(0)
        wanted = attack(model, x, y, strongest_other)
        torch.manual_seed(0)
        ordinary = attack(plain, x, y)
        assert not found.zero_grad.any()
        assert (found.x_adv - wanted).abs().gt(1e-6).float().mean() <= (0 if factor == 1e6 else 0.01)
        # As strong as on the ordinary network, up to what the other direction gives and takes.
        left, there = margin(plain, found.x_adv, y), margin(plain, ordinary, y)
        assert (there < margin(plain, x, y)).all() and (left - there).abs().max() < 0.05 * there.abs().max()


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.norm_mode == "eval"], ids=repr)
def test_on_ordinary_networks_the_log_odds_are_climbed_as_the_cross_entropy_is(attack: PGD) -> None:
    """Bit for bit, the choice among restarts and steps included; a lambda is climbed as it is."""
    model, (x, y) = net(), batch(32)
    loss = CrossEntropy(y, attack.targeted)
    for each in (attack, replace(attack, restarts=3), replace(attack, keep_best=True, steps=4)):
        torch.manual_seed(0)
        found = each(model, x, y)
        torch.manual_seed(0)
        assert torch.equal(found, each(model, x, y, lambda logits: loss(logits)))


def test_shares_that_are_all_of_one_class_are_that_class_however_confident() -> None:
    model, factor = net(), 1e6
    x, y = confident_batch(model)
    with torch.no_grad():
        model.fc.weight.mul_(factor), model.fc.bias.mul_(factor)
    for attack in (PGD(eps=0.1, steps=3), PGD(eps=0.1, steps=3, keep_best=True)):
        torch.manual_seed(0)
        wanted = attack(model, x, y)
        torch.manual_seed(0)
        assert torch.equal(attack(model, x, F.one_hot(y, 4).float()), wanted)


def test_shares_of_another_number_of_classes_are_refused() -> None:
    x, y = batch()
    for classes in (1, 7):
        text = rf"shares of classes must be of the logits' shape \(6, 4\); they are \(6, {classes}\)"
        with pytest.raises(ValueError, match=text):
            PGD(steps=1)(net(), x, torch.rand(6, classes))


def test_the_cross_entropy_with_shares_is_torch_s() -> None:
    logits, y = torch.randn(50, 7, dtype=torch.float64) * 8, torch.randint(7, (50,))
    shares = torch.rand(50, 7, dtype=torch.float64).softmax(-1)
    shares[:10] = F.one_hot(y[:10], 7).double()
    wanted = F.cross_entropy(logits, shares, reduction="none")
    torch.testing.assert_close(CrossEntropy(shares)(logits), wanted)
    torch.testing.assert_close(CrossEntropy(shares, targeted=True)(logits), -wanted)
    assert torch.autograd.gradcheck(lambda t: CrossEntropy(shares)(t), logits.requires_grad_())


def test_the_loss_of_the_attack_is_the_cross_entropy() -> None:
    logits, y = torch.randn(50, 7, dtype=torch.float64) * 8, torch.randint(7, (50,))
    torch.testing.assert_close(CrossEntropy(y)(logits), F.cross_entropy(logits, y, reduction="none"))
    assert torch.autograd.gradcheck(lambda t: CrossEntropy(y[:5])(t), logits[:5].requires_grad_())
    # A margin of 100: exp(-100), which log_softmax rounds to 0.
    far = CrossEntropy(torch.tensor([0]))(torch.tensor([[100.0, 0.0]], dtype=torch.float64))
    assert far.item() == pytest.approx(np.exp(-100.0))


def test_float16_gradients_that_would_underflow_are_propagated() -> None:
    """A loss divided by many images and a confident model: nothing of it would survive in float16."""
    model = Scaled(10, torch.float16)
    x, y = confident_batch(model)
    x_in = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(model(x_in), y) / 1e7, x_in)
    found = PGD(steps=2).perturb(model, x, y)
    assert (plain == 0).all() and not found.zero_grad.any()


def test_bfloat16_autocast_is_nearly_as_strong() -> None:
    model, (x, y) = net(), batch(32)
    attack = PGD(steps=5, eps=0.1, random_start=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = attack.perturb(model, x, y)
    assert found.x_adv.dtype == torch.float32 and not found.zero_grad.any()
    clean, precise = loss_of(model, x, y).mean(), loss_of(model, attack(model, x, y), y).mean()
    assert loss_of(model, found.x_adv, y).mean() - clean > 0.9 * (precise - clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_of_another_dtype_stay_so(norm: Any, dtype: torch.dtype) -> None:
    x, y = batch()
    x = x.to(dtype)
    eps = {"linf": 0.1, "l2": 1.0, "l1": 9.0}[norm]
    x_adv = PGD(norm=norm, eps=eps, steps=2)(net().to(dtype), x, y)
    assert x_adv.dtype == dtype and 0 <= x_adv.min() and x_adv.max() <= 1
    assert (distance(x_adv, x, norm) <= eps * (1 + 4 * torch.finfo(dtype).eps * x[0].numel() ** 0.5)).all()


class Rounded(Net):
    """A defence by rounding: where it acts, the gradient is zero."""

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[:, :1, :1, :1] > 0.5).to(x)  # half of the images
        return super().forward(mask * (x * 4).round() / 4 + (1 - mask) * x)


def test_zero_gradients_are_counted_by_image() -> None:
    x, y = batch(8)
    x[:4, 0, 0, 0], x[4:, 0, 0, 0] = 0.9, 0.1
    model = net()
    model.__class__ = Rounded
    for norm in ("linf", "l2", "l1"):
        found = PGD(norm=norm, eps=0.05, steps=2, random_start=False).perturb(model, x, y)
        assert found.zero_grad.tolist() == [True] * 4 + [False] * 4
        assert torch.equal(found.x_adv[:4], x[:4]) and (distance(found.x_adv, x, norm)[4:] > 0).all()
    assert not PGD(steps=2).perturb(net(), x, y).zero_grad.any()


def test_a_flat_model_is_counted_over_all_restarts() -> None:
    class Flat(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0

    model = net()
    model.__class__ = Flat
    found = PGD(steps=2, restarts=3, keep_best=True).perturb(model, *batch())
    assert found.zero_grad.all() and found.x_adv.isfinite().all()


def test_a_start_that_is_stuck_is_counted_though_another_is_not() -> None:
    class LaterFlat(Net):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            return super().forward(x) * (self.passes <= 2)  # one step and the loss of its result: the first start

    model = net()
    model.__class__ = LaterFlat
    assert PGD(steps=1, restarts=2).perturb(model, *batch()).zero_grad.all()


def test_gradients_that_are_not_finite_are_counted() -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            bad = (x[:, :1, :1, :1] > 0.95).to(x)
            return super().forward(x) + (x.sum((1, 2, 3), keepdim=True) * 0 * bad).sqrt().sum((1, 2, 3)).unsqueeze(1)

    x, y = batch()
    x[0, 0, 0, 0], x[1:, 0, 0, 0] = 1.0, 0.0
    model = net()
    model.__class__ = Broken
    for norm, eps in (("linf", 0.01), ("l2", 0.01), ("l1", 0.01)):
        found = PGD(steps=2, norm=norm, eps=eps, random_start=False).perturb(model, x, y)  # type: ignore[arg-type]
        assert found.zero_grad[0] and found.x_adv.isfinite().all()


# Models that cache in eval mode


@pytest.mark.parametrize("name", ["levit_128s", "efficientvit_m0"])
@pytest.mark.parametrize("train", [False, True])
def test_attention_bias_caches_do_not_outlive_the_attack(name: str, train: bool) -> None:
    torch.manual_seed(0)
    settings = {"num_classes": 4} | ({"img_size": 64} if name.startswith("eff") else {})
    model = timm.create_model(name, **settings)
    with torch.no_grad():
        for norm in model.modules():  # timm begins with attention switched off, by a last norm of zero
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
                norm.weight.fill_(1)
    model.double().train(train)
    pixels = in_pixels(model)
    size = 64 if name.startswith("eff") else 224
    x, y = torch.rand(2, 3, size, size).double(), torch.tensor([0, 1])
    if not train:
        pixels(x)  # fills the cache
    PGD(steps=2, random_start=False)(pixels, x, y)
    copied = copy.deepcopy(pixels)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "attention_bias" in key:
                parameter.add_(torch.randn_like(parameter))
    fresh = timm.create_model(name, **settings).eval().double()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        if not train:  # a call of eval() would drop the cache
            torch.testing.assert_close(model(x), fresh(x), rtol=0, atol=1e-12)
        assert (copied.eval()(x) - fresh(x)).abs().max() > 1e-6, "the biases matter, or this test says nothing"


# Settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"eps": 8}, r"eps=8 is not in \(0, 1\): images are in \[0, 1\], write 8/255 rather than 8"),
        ({"eps": 0.0}, r"eps=0.0 is not in \(0, 1\)"),
        ({"eps": float("nan")}, r"eps=nan is not in \(0, 1\)"),
        ({"norm": "l2"}, r"eps must be given for norm='l2'"),
        ({"norm": "l1"}, r"eps must be given for norm='l1'"),
        ({"norm": "l2", "eps": -1.0}, r"eps=-1.0 is not above 0"),
        ({"norm": "l3", "eps": 1.0}, r"norm='l3' is not one of linf, l2, l1"),
        ({"step_size": 0.0}, r"step_size=0.0 is not above 0; leave it out for 2.5 eps / steps"),
        ({"steps": 0}, r"steps=0 is not at least 1"),
        ({"restarts": 0}, r"restarts=0 is not at least 1"),
        ({"warmup_epochs": -1}, r"warmup_epochs=-1 is not at least 0"),
        ({"progressive_epochs": -1}, r"progressive_epochs=-1 is not at least 0"),
        ({"norm_mode": "test"}, r"norm_mode='test' is not one of eval, batch, train"),
    ],
)
def test_a_setting_out_of_range_says_so(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PGD(**settings)


def test_defaults() -> None:
    assert (PGD().norm, PGD().radius, PGD().steps) == ("linf", 8 / 255, 10)
    assert PGD().step_length == pytest.approx(2 / 255)  # 2.5 eps / steps
    assert PGD(steps=1).step_length == PGD(steps=2).step_length == 8 / 255, "at most eps"
    assert PGD(norm="l2", eps=10.0, steps=100).step_length == pytest.approx(0.25)
    assert PGD(step_size=0.5).step_length == 0.5


def test_is_a_frozen_value() -> None:
    assert PGD(eps=8 / 255) == PGD() and hash(PGD()) == hash(PGD())
    with pytest.raises(AttributeError):
        PGD().steps = 3  # type: ignore[misc]
    assert eval(repr(PGD(steps=3))) == PGD(steps=3)


def test_progressive_steps_rise_from_one_and_the_default_step_size_follows():
    attack = PGD(eps=0.1, steps=7, progressive_epochs=3)
    epochs = [attack.at_epoch(epoch) for epoch in range(5)]
    assert [each.steps for each in epochs] == [1, 3, 5, 7, 7]
    assert [each.step_length for each in epochs] == [
        0.1,
        pytest.approx(0.25 / 3),
        *[pytest.approx(0.25 / n) for n in (5, 7, 7)],
    ]
    assert attack.at_epoch(3) is attack
    given = PGD(eps=0.1, steps=7, step_size=0.02, progressive_epochs=3)
    assert [given.at_epoch(epoch).step_length for epoch in range(4)] == [0.02] * 4
    both = PGD(eps=0.1, steps=7, progressive_epochs=3, warmup_epochs=1)
    assert [both.at_epoch(epoch).steps for epoch in range(4)] == [1, 3, 5, 7]
    assert both.at_epoch(0).radius == both.at_epoch(0).step_length == pytest.approx(0.05)
    assert both.at_epoch(1).radius == 0.1


def test_warm_up_raises_eps_and_the_step_linearly() -> None:
    attack = PGD(eps=0.1, steps=10, warmup_epochs=4)
    radii = [attack.at_epoch(epoch).radius for epoch in range(7)]
    assert radii == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])
    ratio = {round(attack.at_epoch(e).step_length / attack.at_epoch(e).radius, 9) for e in range(7)}
    assert ratio == {0.25}
    assert attack.at_epoch(4) is attack and PGD().at_epoch(0) == PGD()
    x, y = batch()
    assert distance(attack.at_epoch(0)(net(), x, y), x, "linf").max() <= 0.02 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (torch.full((2, 3, 8, 8), 1.5), torch.zeros(2).long(), r"must be in \[0, 1\]; these are in \[1.5, 1.5\]"),
        (torch.full((2, 3, 8, 8), -0.1), torch.zeros(2).long(), r"attack timm_arat.in_pixels\(model\)"),
        (torch.full((2, 3, 8, 8), float("nan")), torch.zeros(2).long(), r"must be in \[0, 1\]; these are in \[nan"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), r"NxCxHxW floats .* torch.uint8"),
        (torch.zeros(3, 8, 8), torch.zeros(3).long(), r"NxCxHxW floats in \[0, 1\]; these are \(3, 8, 8\)"),
        (
            torch.zeros(2, 3, 8, 8),
            torch.zeros(3).long(),
            r"must be 2 integers, or floats 2xK .* for 2 images; these are \(3,\)",
        ),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 4).long(), r"these are \(2, 4\)"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), r"these are \(2,\) torch.float32"),
        (
            torch.zeros(2, 3, 8, 8),
            torch.zeros(3, 4),
            r"floats 2xK \(the share of each class\).* are \(3, 4\) torch.float",
        ),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 1), r"these are \(2, 4, 1\)"),
    ],
)
def test_wrong_images_and_labels_are_refused(x: Tensor, y: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PGD(steps=1)(net(), x, y)


def test_a_start_of_another_shape_is_refused() -> None:
    x, y = batch(2)
    with pytest.raises(ValueError, match=r"start must be of the images' shape \(2, 3, 8, 8\); it is \(1, 3, 8, 8\)"):
        PGD(steps=1).perturb(net(), x, y, start=x[:1])


def test_search_takes_a_centre_outside_the_box_and_gives_images_inside() -> None:
    x, y = batch()
    centre = x + 0.05
    x_adv = search(PGD(steps=2, random_start=False), net(), centre, y).x_adv
    assert 0 <= x_adv.min() and x_adv.max() <= 1
