"""The training steps as their papers read: contiguous images, fp32, attack by autograd.grad, hooks for features.

What our methods are measured against, written once and plainly. Each takes the parts of our own method, so both sides
have the same weights. `norm_mode` is that of the attack; train is what the published codes do, but for TRADES'.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_arat.attacks import PGD
from timm_arat.methods import ARAT, TRADES, Madry, Method
from timm_arat.norm import is_split, norm_branch

NormMode = Literal["train", "eval"]


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, attack: PGD, norm_mode: NormMode, objective: Literal["ce", "kl"] = "ce"
) -> Tensor:
    """Madry et al., arXiv:1706.06083, Eq. 2 of Sec. 2.1, from a uniform start; `attack` gives radius and steps.

    For kl the clean prediction is taken once; TRADES' own code takes it anew, with its graph, at every step.
    """
    model.train(norm_mode == "train")
    if objective == "kl":
        with torch.no_grad():
            p_clean = F.softmax(model(x), dim=1)
    eps, size = attack.radius, attack.step_length
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(attack.steps):
        x_adv.requires_grad_()
        logits = model(x_adv)
        if objective == "kl":
            loss = F.kl_div(F.log_softmax(logits, dim=1), p_clean, reduction="sum")
        else:
            loss = F.cross_entropy(logits, y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + size * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    model.train()
    return x_adv


def arat(method: ARAT, x: Tensor, y: Tensor, attack: PGD, norm_mode: NormMode) -> Tensor:
    """The loss of ARAT (Waseda et al., arXiv:2402.14648, Sec. 3): one forward for each kind of image."""
    network = _network(method)
    with _branch(method, "main"):
        x_adv = pgd(network, x, y, attack, norm_mode)
    features: list[Tensor] = []
    last: str = method.model.feature_info[-1]["module"]  # type: ignore[index, assignment]  # timm's protocol
    hook = method.model.get_submodule(last).register_forward_hook(lambda module, args, out: features.append(out))
    with _branch(method, "aux"):
        logits_clean = network(x)
    with _branch(method, "main"):
        logits_adv = network(x_adv)
    hook.remove()
    z, z_adv = (each.mean((2, 3)) for each in features)
    invariance = (1 - F.cosine_similarity(method.predictors[0](z_adv), z.detach())).mean()
    a = method.balance
    ce_adv, ce_clean = F.cross_entropy(logits_adv, y), F.cross_entropy(logits_clean, y)
    return a * ce_adv + (1 - a) * ce_clean + method.config.weight * invariance


def madry(method: Madry, x: Tensor, y: Tensor, attack: PGD, norm_mode: NormMode) -> Tensor:
    """The loss of PGD adversarial training (arXiv:1706.06083, Eq. 2.1)."""
    network = _network(method)
    return F.cross_entropy(network(pgd(network, x, y, attack, norm_mode)), y)


def trades(method: TRADES, x: Tensor, y: Tensor, attack: PGD, norm_mode: NormMode) -> Tensor:
    """The loss of TRADES (Zhang et al., arXiv:1901.08573, Alg. 1), whose authors attack in eval mode."""
    network = _network(method)
    x_adv = pgd(network, x, y, attack, norm_mode, objective="kl")
    logits_clean, logits_adv = network(x), network(x_adv)
    kl = F.kl_div(F.log_softmax(logits_adv, dim=1), F.softmax(logits_clean, dim=1), reduction="batchmean")
    return F.cross_entropy(logits_clean, y) + method.config.beta * kl


def _network(method: Method) -> nn.Module:
    """The method's own backbone; takes images in [0, 1]."""
    return method.network


def _branch(method: Method, branch: Literal["main", "aux"]) -> AbstractContextManager[object]:
    return norm_branch(method.model, branch) if is_split(method.model) else nullcontext()


# By the name of the method in a recipe. A method whose textbook stands here is measured; one more is one row more.
TEXTBOOK: dict[str, Callable[..., Tensor]] = {"arat": arat, "madry": madry, "trades": trades}
