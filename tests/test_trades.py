"""TRADES against a loss written out by hand, and what its two passes and its attack see."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_arat import PGD, TRADES
from timm_arat.methods import TRADESConfig

ATTACK = PGD(eps=0.1, steps=2)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    shape = {"layers": (1, 1), "channels": (8, 12), "stem_width": 8, "zero_init_last": False}
    return timm.create_model("resnet20_cifar", num_classes=5, **shape)


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.randint(5, (n,), generator=generator)


def step(method: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return method.train()(x, y)


def search_by_hand(model: nn.Module, x: Tensor, attack: PGD = ATTACK) -> Tensor:
    """Sign steps up the divergence from the clean prediction, from a random start; the model stays in its mode."""
    start = (x + torch.empty_like(x).uniform_(-attack.radius, attack.radius)).clamp(0, 1)
    p, x_adv = model(x).softmax(1).detach(), start.clamp(x - attack.radius, x + attack.radius)
    for _ in range(attack.steps):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad((p * (p / model(x_adv).softmax(1)).log()).sum(), x_adv)
        x_adv = (x_adv + attack.step_length * grad.sign()).clamp(x - attack.radius, x + attack.radius).clamp(0, 1)
    return x_adv.detach()


def by_hand(method: TRADES, x: Tensor, y: Tensor, beta: float) -> Tensor:
    """The authors' order: attack in eval mode, clean pass, adversarial pass, each a batch of its own."""
    torch.manual_seed(0)
    model = method.model
    x_adv = search_by_hand(model.eval(), x)
    model.train()
    p, q = (z.exp() / z.exp().sum(1, keepdim=True) for z in (model(x), model(x_adv)))
    ce = sum(-p[i, label].log() for i, label in enumerate(y)) / len(y)
    return ce + beta * sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(len(y)) for k in range(5)) / len(y)


def test_the_loss_its_gradients_and_the_statistics_are_those_written_by_hand():
    x, y = batch()
    method = TRADES(backbone(), attack=ATTACK, beta=2.5).double()
    twin = copy.deepcopy(method)
    found, expected = step(method, x.double(), y)["loss"], by_hand(twin, x.double(), y, beta=2.5)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    for (name, p), q in zip(method.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    for (name, a), b in zip(method.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_the_attack_is_the_search_written_by_hand():
    x, y = batch()
    method = TRADES(backbone(), attack=PGD(eps=0.1, steps=5)).double().train()
    torch.manual_seed(0)
    same, found = method.perturb(x.double(), y)
    torch.manual_seed(0)
    wanted = search_by_hand(copy.deepcopy(method.model).eval(), x.double(), method.attack)
    assert torch.equal(same, x.double())
    torch.testing.assert_close(found, wanted)


def test_an_attack_that_starts_at_the_images_is_refused():
    with pytest.raises(ValueError, match="TRADES needs attack.random_start"):
        TRADES(backbone(), attack=PGD(random_start=False))


def test_clean_and_adversarial_images_are_batches_of_their_own_clean_first():
    x, y = batch()
    method = TRADES(backbone(), attack=ATTACK)
    images, outputs = [], []
    method.model.register_forward_pre_hook(lambda module, args: images.append(args[0].detach()))
    method.model.conv1.register_forward_hook(lambda module, args, out: outputs.append(out.detach()))
    step(method, x, y)
    assert torch.equal(images[-2], x)
    assert 0 < (images[-1] - x).abs().max() <= 0.1 + 1e-6
    clean, adversarial = (out.mean((0, 2, 3)) for out in outputs[-2:])
    assert int(method.model.bn1.num_batches_tracked) == 2  # and none by the attack
    torch.testing.assert_close(method.model.bn1.running_mean, 0.9 * 0.1 * clean + 0.1 * adversarial)


def test_equal_predictions_have_no_divergence():
    x, y = batch()
    model = backbone()
    nn.init.zeros_(model.fc.weight)
    method = TRADES(model, attack=ATTACK)
    terms = step(method, x, y)
    assert float(terms["kl"]) == 0
    assert ATTACK.perturb(model, x, y, objective=method.eval().objective(x, y)).zero_grad.all()
    torch.testing.assert_close(terms["loss"], terms["ce_clean"])


def test_without_beta_it_is_cross_entropy_on_clean_images():
    x, y = batch()
    method, reference = TRADES(backbone(), attack=ATTACK, beta=0.0), backbone().train()
    found, expected = step(method, x, y)["loss"], F.cross_entropy(reference(x), y)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    for (name, p), q in zip(method.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_the_attack_raises_the_divergence_whatever_the_labels():
    x, y = batch(32)
    one, other = (step(TRADES(backbone(), attack=ATTACK), x, labels) for labels in (y, (y + 1) % 5))
    assert torch.equal(one["output"], other["output"]) and torch.equal(one["kl"], other["kl"])
    found = [ATTACK(backbone(), x, labels) for labels in (y, (y + 1) % 5)]
    assert not torch.equal(*found), "which other attacks go by"

    model = backbone().eval()  # as the attack sees it
    noise = (x + torch.empty_like(x).uniform_(-0.1, 0.1)).clamp(0, 1)
    clean = model(x).log_softmax(1)
    random, climbed = (
        F.kl_div(model(each).log_softmax(1), clean, reduction="batchmean", log_target=True)
        for each in (noise, TRADES(model, attack=ATTACK).perturb(x, y)[1])
    )
    assert climbed > 2 * random


def test_a_step_under_bf16_autocast_is_finite():
    x, y = batch()
    method = TRADES(backbone(), attack=ATTACK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = step(method, x, y)
    assert terms["loss"].dtype == terms["output"].dtype == torch.float32
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not ATTACK.perturb(method.network, x, y, objective=method.objective(x, y)).zero_grad.any()


@pytest.mark.parametrize("beta", [-1.0, float("nan")])
def test_a_negative_beta_is_an_error(beta):
    with pytest.raises(ValueError, match=f"beta={beta} is not at least 0"):
        TRADESConfig(beta=beta)
