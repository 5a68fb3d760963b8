"""The attack of TRADES and of the methods that follow it: as far from the clean prediction as the ball allows."""

import torch
from torch import Tensor

from ..attacks import PGD, Objective, divergence
from ._base import Method


class DivergenceAttack(Method):
    """A method whose attack climbs KL(p(x) || p(x')) (TRADES, arXiv:1901.08573, Alg. 1).

    Raises:
        ValueError: the attack starts at the images, where the divergence that it climbs has no gradient.
    """

    def checked(self, attack: PGD) -> PGD:
        attack = super().checked(attack)
        if not attack.random_start:
            raise ValueError(
                f"{type(self).__name__} needs attack.random_start: at the images themselves its objective has no "
                "gradient"
            )
        return attack

    def objective(self, x: Tensor, y: Tensor) -> Objective:
        """The divergence from the clean prediction, which is made once, while the network is ready for the attack."""
        with torch.no_grad():
            return divergence(self.network(x))
