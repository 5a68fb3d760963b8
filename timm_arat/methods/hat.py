"""HAT: helper-based adversarial training (Rade and Moosavi-Dezfooli, ICLR 2022)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import prediction_divergence
from ..pixels import in_pixels
from ._base import Terms, accuracy, precise
from ._divergence import DivergenceAttack
from ._frozen import Frozen, check_classes
from .configs import HATConfig


class HAT(DivergenceAttack):
    """CE(f(x), y) + beta KL(p(x) || p(x')) + gamma CE(f(x_h), y_h), with x_h = x + h (x' - x), y_h = argmax g(x').

    The helper images x_h lie beyond the ball, where a robust network needs no margin; the standardly trained g says
    what the attack has made of them. As in the authors' code (imrahulr/hat 3177a4f): h is 2 and x_h is not clamped to
    [0, 1]; the label is g's for x', not for x_h; g is in eval mode; nothing is detached; f sees x, x' and x_h in this
    order, each a batch of its own; the attack climbs TRADES' divergence in eval mode. Deviation: the attack starts from
    a uniform point of the ball, not from x + 0.001 N(0, 1).

    Args:
        teacher: The helper g, a timm model with standardly trained weights; it is only used, see `Frozen`.
        model, config, attack, settings: see `Method`.

    Raises:
        ValueError: no teacher, or one of other classes; or an attack without a random start.
    """

    Config = HATConfig
    config: HATConfig

    def __init__(
        self, model: nn.Module, config: HATConfig | None = None, *, teacher: nn.Module | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, config, teacher=teacher, **kwargs)
        assert teacher is not None
        check_classes(self.model, teacher)
        self.teacher = Frozen(in_pixels(teacher))

    @classmethod
    def needs_teacher(cls, config: Any) -> bool:
        return True

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        logits_clean, logits_adv = precise(self.network(x)), precise(self.network(x_adv))  # NxK each
        logits_helper = precise(self.network(x + self.config.h * (x_adv - x)))
        losses = {
            "ce_clean": F.cross_entropy(logits_clean, y),
            "kl": prediction_divergence(logits_clean, logits_adv),
            "ce_helper": F.cross_entropy(logits_helper, self.teacher(x_adv).argmax(-1)),
        }
        weights: dict[str, Tensor | float] = {"ce_clean": 1.0, "kl": self.config.beta, "ce_helper": self.config.gamma}
        log = {"acc_adv": accuracy(logits_adv, y), "acc_clean": accuracy(logits_clean, y)}
        return Terms(losses, weights, logits_adv, log)
