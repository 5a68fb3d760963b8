"""HAT's loss, gradients and helper images against the formula, image by image."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_arat import HAT, PGD


def backbone(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet20_cifar", num_classes=5, layers=(1, 1), channels=(4, 8), zero_init_last=False)


def build(**settings) -> HAT:
    attack = PGD(eps=0.1, steps=1)
    return HAT(backbone(), teacher=backbone(1), attack=attack, **settings).double().train()


def images() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 3, 4, 0]), (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def formula(clean: Tensor, adv: Tensor, beyond: Tensor, y: Tensor, labels: Tensor, beta: float, gamma: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(y)):
        p, q, b = (logits[i].softmax(0) for logits in (clean, adv, beyond))
        divergence = sum(p[k] * (p[k] / q[k]).log() for k in range(len(p)))
        total = total - p[int(y[i])].log() + beta * divergence - gamma * b[int(labels[i])].log()
    return total / len(y)


def test_loss_gradients_and_statistics_are_the_formulas():
    x, y, x_adv = images()
    method = build(beta=2.5, gamma=0.75, h=3.0)
    helper = method.teacher.module
    with torch.no_grad():  # a helper of many minds
        helper.model.get_classifier().bias -= helper(torch.cat([x_adv, x + 3 * (x_adv - x)])).mean(0)
    twin = copy.deepcopy(method)
    loss = method(x, y, x_adv)["loss"]
    loss.backward()
    beyond = x + 3 * (x_adv - x)
    assert beyond.min() < 0 and beyond.max() > 1, "they are not clamped"
    labels = helper(x_adv).argmax(1)
    assert (labels != helper(beyond).argmax(1)).any(), "or the test does not tell the two apart"
    # In the authors' order.
    logits = [twin.network(each) for each in (x, x_adv, beyond)]
    expected = formula(*logits, y, labels, 2.5, 0.75)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for (name, p), q in zip(method.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-12, msg=name)
    for (name, a), b in zip(method.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_the_helper_stays_in_eval_mode_and_as_it_is():
    method = build()
    before = copy.deepcopy(method.teacher.module.state_dict())
    x, y, x_adv = images()
    method.train()(x, y, x_adv)["loss"].backward()
    assert not any(module.training for module in method.teacher.module.modules())
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.module.state_dict().items())


@pytest.mark.parametrize("name", ["beta", "gamma", "h"])
def test_a_negative_setting_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1.0 is not at least 0"):
        build(**{name: -1.0})


def test_a_missing_helper_is_an_error_that_names_the_setting():
    with pytest.raises(ValueError, match="HAT needs a second network: give teacher=.* teacher.name"):
        HAT(backbone())
