"""A loss that is differentiated early has the gradients it would have had, and holds nothing."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from timm_arat import ARAT, PGD, models  # noqa: F401  # registers the backbones
from timm_arat.methods._early import Early
from timm_arat.norm import norm_branch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def losses(net, early):
    torch.manual_seed(1)
    x, x_adv, y = torch.rand(5, 6).double(), torch.rand(5, 6).double(), torch.randint(4, (5,))
    first = F.cross_entropy(net(x), y)
    early = Early(first, net.parameters()) if early else None
    return 3 * F.cross_entropy(net(x_adv), y) + (first if early is None else early.term())


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_gradients_are_those_of_the_sum(scale):
    """Scaled as by accumulation or a gradient scaler, and added to gradients that are there."""
    plain, early = network(), network()
    for _ in range(2):
        wanted, found = losses(plain, early=False), losses(early, early=True)
        torch.testing.assert_close(found, wanted)
        (scale * wanted).backward()
        (scale * found).backward()
    for p, q in zip(plain.parameters(), early.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


def test_a_parameter_that_is_frozen_or_unused_gets_no_gradient():
    net, unused = network(), nn.Parameter(torch.ones(3))
    net[0].requires_grad_(False)
    Early(net(torch.rand(2, 6).double()).sum(), [*net.parameters(), unused]).term().backward()
    assert unused.grad is None and net[0].weight.grad is None and net[2].weight.grad is not None


@pytest.mark.parametrize("scale", [1, 2])
def test_two_parameters_with_one_gradient_are_scaled_once_each_and_share_no_memory(scale):
    a, b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    (scale * Early((a + b).sum(), [a, b]).term()).backward()
    a.grad.mul_(3)
    assert (a.grad / 3).tolist() == b.grad.tolist() == [scale] * 3


def test_gradients_that_share_memory_by_a_view_are_parted():
    a, b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(6))
    Early(((a.view(-1) + b) ** 2).sum(), [a, b, a]).term().backward()
    assert a.grad.untyped_storage().data_ptr() != b.grad.untyped_storage().data_ptr()
    assert a.grad.flatten().tolist() == b.grad.tolist() == [4] * 6


def test_a_second_backward_is_refused():
    net = network()
    loss = Early(net(torch.rand(2, 6).double()).sum(), net.parameters()).term()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out once"):
        loss.backward()


def test_without_gradients_and_under_fp16_the_loss_comes_back_as_it_is():
    net = network().float()
    with torch.no_grad():
        loss = net(torch.rand(2, 6)).sum()
        assert Early(loss, net.parameters()).term() is loss
    with torch.autocast("cpu", torch.float16):
        loss = net(torch.rand(2, 6)).float().sum()
        assert Early(loss, net.parameters()).term() is loss


def reference(method, x, x_adv, y):
    """The loss of ARAT by one joint pass, nothing taken early."""
    with norm_branch(method.model, "both"):
        final, (last,) = method.model.forward_intermediates(torch.cat([x_adv, x]), indices=1)
    (logits_adv, logits), (z_adv, z) = (t.chunk(2) for t in (method.model.forward_head(final), last.mean((2, 3))))
    invariance = 1 - F.cosine_similarity(method.predictors[0](z_adv), z.detach()).mean()
    a = method.balance
    return a * F.cross_entropy(logits_adv, y) + (1 - a) * F.cross_entropy(logits, y) + 30 * invariance


@pytest.mark.parametrize("checkpointing", [False, True])
def test_arat_has_the_gradients_and_statistics_of_one_joint_pass(checkpointing):
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", layers=[1, 1], channels=[8, 16])
    method = ARAT(model, attack=PGD(steps=1)).double().train()
    method.set_clean_accuracy(0.3)
    other = copy.deepcopy(method)
    if checkpointing:
        method.model.set_grad_checkpointing(True)
    x, y = torch.rand(8, 3, 16, 16).double(), torch.randint(10, (8,))
    torch.manual_seed(2)
    found = method(x, y)["loss"]
    torch.manual_seed(2)
    with norm_branch(other.model, "main"):
        x_adv = other.attack(other.network, x, y)
    wanted = reference(other, x, x_adv, y)
    torch.testing.assert_close(found, wanted)
    found.backward()
    wanted.backward()
    for (name, p), q in zip(method.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")
    if checkpointing:
        return  # a block that runs again moves its statistics again, as everywhere in torch
    for (name, p), q in zip(method.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda m, name=name: f"{name}: {m}")


def test_arat_holds_the_activations_of_one_kind_of_image_at_a_time():
    """Counted where the loss is returned: what its graph keeps is half of what the naive form keeps."""

    def kept(**settings):
        torch.manual_seed(0)
        model = timm.create_model("resnet20_cifar", layers=[1, 1], channels=[8, 16])
        method = ARAT(model, attack=PGD(steps=1), **settings).train()
        weights = {t.untyped_storage().data_ptr() for t in (*method.parameters(), *method.buffers())}
        live: dict[int, int] = {}

        class Held:
            def __init__(self, t):
                self.t = t
                live[id(self)] = t.untyped_storage().nbytes() * (t.untyped_storage().data_ptr() not in weights)

            def __del__(self):
                live.pop(id(self), None)

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.t):
            loss = method(torch.rand(8, 3, 32, 32), torch.randint(10, (8,)))["loss"]
        assert loss.requires_grad
        return sum(live.values())

    assert kept() < 0.6 * kept(anchor="none", predictor="none")
