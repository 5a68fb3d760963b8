"""Do the terms of a loss pull the weights the same way? The gradient analysis of the ARAT paper (Figs. 2 and 4b).

Gradients are those of the weights of the network's Conv2d and Linear layers, the classifier and the convolutions of
shortcuts among them; biases, norms and a method's predictors are left out, as in the official code. Deviations: every
pair of single terms is compared, where the official code has two losses, the sum of the weighted cross-entropies and
the weighted invariance (`official=True`); gradients of the auxiliary parts are never accumulated in `.grad`, which the
official code does; and its 1e-20, added to each loss, is left out, since it has no gradient.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import Method, Terms
from .untouched import untouched

Reduce = Callable[[Tensor], Tensor]


class OneTerm(ValueError):
    """The loss has a single term, so there is nothing for it to be in conflict with."""


@dataclass(frozen=True)
class Pair:
    """cos: of the two gradients, in [-1, 1]; None where one of them is zero.

    share: of the weights whose two gradients have opposite signs, in [0, 1]; a zero gradient has no sign and counts in
    the denominator. Both ignore the terms' (positive) weights.
    """

    cos: float | None
    share: float


@dataclass(frozen=True)
class Part:
    """The gradients at some of the weights.

    Attributes:
        size: Number of weights.
        norms: Length of each term's gradient, unweighted.
        weighted_norms: The same times the term's weight, and as `loss` the length of the weighted sum of all.
        pairs: By 'a|b', for the terms a and b in the order in which the method names them.
    """

    size: int
    norms: dict[str, float]
    weighted_norms: dict[str, float]
    pairs: dict[str, Pair]


@dataclass(frozen=True)
class Conflict:
    """losses, weights: value and weight of each term. whole: over all layers. layers: each by its module's name."""

    losses: dict[str, float]
    weights: dict[str, float]
    whole: Part
    layers: dict[str, Part]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def conflict(
    method: Method, x: Tensor, y: Tensor, x_adv: Tensor, *, official: bool = False, reduce: Reduce | None = None
) -> Conflict:
    """The gradients of the terms of `method`, in the mode (train or eval) in which it is, compared pair by pair.

    The method, its running statistics and the generators are as before. It costs one forward pass and a backward pass
    for each term, and holds the gradients of all terms at once.

    Args:
        x: Images NxCxHxW in [0, 1]; `x` and `x_adv` as `method.perturb` gave them.
        y: Classes N, or the share of each class NxK.
        x_adv: Adversarial images NxCxHxW.
        official: Compare the two losses of the official code, 'classify' and 'align', each with its weights inside.
        reduce: Average of a tensor over processes, each of which has its share of the batch.

    Raises:
        OneTerm: the loss has a single term.
    """
    with untouched(method), torch.enable_grad():
        terms = method.terms(x, y, x_adv)
        losses, weights = official_losses(terms) if official else (terms.losses, terms.weights)
        if len(losses) < 2:
            raise OneTerm(
                f"{type(method).__name__}'s loss with these settings has one term only, {', '.join(losses)}, and a "
                "conflict needs two: take a method with two terms or more"
            )
        names = list(losses)
        layers = layer_weights(method.network)
        gradients = [
            _gradient(losses[name], list(layers.values()), keep=name != names[-1], reduce=reduce) for name in names
        ]
    values = {name: float(reduce(loss.detach()) if reduce else loss.detach()) for name, loss in losses.items()}
    factors = {name: float(weights[name]) for name in names}
    grams, opposites = zip(*(_compare(list(each)) for each in zip(*gradients, strict=True)), strict=True)
    sizes = [weight.numel() for weight in layers.values()]
    gram, opposite = torch.stack(grams).double().cpu(), torch.stack(opposites).cpu()  # LxTxT each; one transfer
    parts = {
        layer: _part(factors, size, *found) for layer, size, *found in zip(layers, sizes, gram, opposite, strict=True)
    }
    return Conflict(values, factors, _part(factors, sum(sizes), gram.sum(0), opposite.sum(0)), parts)


def official_losses(terms: Terms) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The official code's two losses, weighted: cross-entropies and margins classify, whatever is left aligns."""
    classify = [name for name in terms.losses if name.startswith("ce_") or name == "margin"]
    align = [name for name in terms.losses if name not in classify]
    found = {key: terms.loss(*names) for key, names in (("classify", classify), ("align", align)) if names}
    return found, dict.fromkeys(found, 1.0)


def layer_weights(network: nn.Module) -> dict[str, Tensor]:
    """The trained weights of the Conv2d and Linear layers of a network by the module's name, each tensor once."""
    network = getattr(network, "model", network)
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.requires_grad and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = module.weight
    if not found:
        raise ValueError(f"{type(network).__name__} has no Conv2d or Linear layer with weights that are trained")
    return found


def _gradient(loss: Tensor, weights: list[Tensor], *, keep: bool, reduce: Reduce | None) -> list[Tensor]:
    """The gradient of `loss` at each weight, zero where it does not depend on it."""
    grads: tuple[Tensor | None, ...] = (None,) * len(weights)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, weights, retain_graph=keep, allow_unused=True)
    found = [torch.zeros_like(w) if grad is None else grad for w, grad in zip(weights, grads, strict=True)]
    return [reduce(grad) for grad in found] if reduce else found


def _compare(grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Of T gradients at the same weights: their dot products TxT, and how many of their signs are opposite, TxT."""
    rows = torch.stack([grad.detach().float().flatten() for grad in grads])
    # One by one: the boolean matrix TxTxsize would be as large as the network, T squared times.
    opposite = torch.stack([((rows.sign() * row.sign()) < 0).sum(1) for row in rows])
    return rows @ rows.T, opposite


def _part(weights: Mapping[str, float], size: int, gram: Tensor, opposite: Tensor) -> Part:
    names = list(weights)
    lengths = gram.diagonal().clamp(min=0).sqrt()
    factors = torch.tensor(list(weights.values()), dtype=gram.dtype)
    norms = {name: float(length) for name, length in zip(names, lengths, strict=True)}
    weighted = {name: weights[name] * norms[name] for name in names}
    weighted["loss"] = float((factors @ gram @ factors).clamp(min=0).sqrt())
    pairs = {}
    for (i, a), (j, b) in combinations(enumerate(names), 2):
        length = float(lengths[i] * lengths[j])
        cos = None if length == 0 else max(-1.0, min(1.0, float(gram[i, j]) / length))
        pairs[f"{a}|{b}"] = Pair(cos, int(opposite[i, j]) / size)
    return Part(size, norms, weighted, pairs)
