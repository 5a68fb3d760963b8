"""What an attack climbs: functions of the logits to one loss per image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits NxK to one loss per image, N; the attack climbs it.
Objective = Callable[[Tensor], Tensor]


class CrossEntropy:
    """The cross-entropy with classes `y` (N), or with the share of each class (NxK); negative where `targeted`."""

    def __init__(self, y: Tensor, targeted: bool = False) -> None:
        self.y, self.sign = y.clone() if y.is_inference() else y.detach(), -1 if targeted else 1

    def __call__(self, logits: Tensor) -> Tensor:
        return self.sign * self._by_image(logits, lambda odds: F.softplus(odds, threshold=40))

    def steady(self, logits: Tensor) -> Tensor:
        """What rises and falls with each image's loss, in the same direction, and underflows for no finite logits.

        Of one class it is the log-odds of the others, log (1 - p) / p, of which the loss is the softplus: that
        underflows where the class is certain, from log-odds of -745 on in float64. Mixed classes have no such loss.
        """
        return self.sign * self._by_image(logits, lambda odds: odds)

    def _by_image(self, logits: Tensor, of_odds: Callable[[Tensor], Tensor]) -> Tensor:
        if self.y.ndim == 1:
            return of_odds(_log_odds(logits, self.y))
        if self.y.shape != logits.shape:
            raise ValueError(
                f"shares of classes must be of the logits' shape {tuple(logits.shape)}; they are {tuple(self.y.shape)}"
            )
        one_class = (self.y != 0).sum(-1) == 1
        single = self.y.sum(-1) * of_odds(_log_odds(logits, self.y.argmax(-1)))
        return torch.where(one_class, single, -(self.y * logits.log_softmax(-1)).sum(-1))


def divergence(logits: Tensor) -> Objective:
    """The Kullback-Leibler divergence from the prediction of `logits` (NxK), as TRADES attacks (arXiv:1901.08573).

    Its gradient at the image of `logits` itself is zero: start elsewhere.
    """
    clean = precise(logits.detach()).log_softmax(-1)
    return lambda logits_adv: F.kl_div(logits_adv.log_softmax(-1), clean, reduction="none", log_target=True).sum(-1)


def precise(logits: Tensor) -> Tensor:
    """In float64, which holds the 1 - p of a confident image that float32 rounds to a zero gradient (MPS has none)."""
    return logits.float() if logits.device.type == "mps" else logits.double()


def _log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Log-odds of the other classes, NxK, N to N: exact on confident images.

    By log_softmax, the gradient to the logit of y is p - 1, which is rounded to zero from a margin of 37 on.
    """
    y = y.unsqueeze(1)
    others = logits.scatter(1, y, -torch.inf).logsumexp(1)
    return others - logits.gather(1, y).squeeze(1)
