"""Two models on the same images: is the difference more than chance?"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from timm_arat.evaluation._score import Z_95, Score

if TYPE_CHECKING:
    from timm_arat.evaluation._robustness import Robustness


@dataclass(frozen=True)
class Paired:
    """McNemar's comparison of a with b on their n common images; both: right in both, only_a: right in a alone.

    a, b: accuracy of each on these images, in [0, 1]. difference: a less b, with its 95 % interval. p_value: exact,
    two-sided.
    """

    n: int
    both: int
    only_a: int
    only_b: int

    @property
    def a(self) -> float:
        return (self.both + self.only_a) / self.n

    @property
    def b(self) -> float:
        return (self.both + self.only_b) / self.n

    @property
    def difference(self) -> float:
        return (self.only_a - self.only_b) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval of the difference (Tango 1998), with the correction that the printed test needs.

        Half an image's step on either side makes it follow the exact test, as Edwards's correction does for McNemar's:
        it holds 0 where p_value is above 0.05. So it covers a little more often than it says, also at no discordance.
        """
        return -_upper_limit(self.n, self.only_b, self.only_a), _upper_limit(self.n, self.only_a, self.only_b)

    @property
    def p_value(self) -> float:
        """Chance of a split at least as uneven among the discordant images if both models were equally good."""
        flips, fewer = self.only_a + self.only_b, min(self.only_a, self.only_b)
        tail, ways = 0, 1
        for k in range(fewer + 1):
            tail += ways
            ways = ways * (flips - k) // (k + 1)
        return min(1.0, 2 * tail / 2**flips)  # whole numbers, so exact and safe from overflow

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.difference:+.1%} [{low:+.1%}, {high:+.1%}] on {self.n} images "
            f"(right in one alone: {self.only_a} against {self.only_b}, p = {self.p_value:.2g})"
        )


def _upper_limit(n: int, only_a: int, only_b: int) -> float:
    """The largest difference that the corrected score test does not refuse, by bisection: it falls as that rises."""
    low, high = (only_a - only_b) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        too_far = n * middle - (only_a - only_b) - 1
        refused = too_far > Z_95 * _deviation(n, only_a, only_b, middle)
        low, high = (low, middle) if refused else (middle, high)
    return high


def _deviation(n: int, only_a: int, only_b: int, difference: float) -> float:
    """Standard deviation of only_a - only_b if the true difference were this one, which is above the measured one.

    The chance of only_b is then its most likely one under that difference: the root of a quadratic (Tango 1998, (7)).
    """
    b = (2 * n - only_a + only_b) * difference - only_a - only_b
    c = -only_b * difference * (1 - difference)
    chance = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    return math.sqrt(max(0.0, n * (2 * chance + difference * (1 - difference))))


def mcnemar(a: Score, b: Score) -> Paired:
    """Pair two scores on the images they share; raises ValueError if they share none."""
    right_a, right_b = a.by_index(), b.by_index()
    common = right_a.keys() & right_b.keys()
    if not common:
        raise ValueError("the two results share no image: evaluate both with the same number of images and seed")
    right = [(right_a[i], right_b[i]) for i in common]
    return Paired(len(common), *(right.count(each) for each in ((True, True), (True, False), (False, True))))


def compare(a: "Robustness", b: "Robustness") -> dict[str, Paired]:
    """McNemar's test for each of 'clean', 'pgd' and 'autoattack' that both results have.

    Raises:
        ValueError: different data sets, threats, or no image in common.
    """
    for what in ("norm", "eps"):
        if getattr(a, what) != getattr(b, what):
            raise ValueError(
                f"{what} is {getattr(a, what)} for {a.model} and {getattr(b, what)} for {b.model}: evaluate again"
            )
    if a.data.labels != b.data.labels:
        raise ValueError(
            f"{a.model} saw {a.data.name} ({a.data.size} images) and {b.model} {b.data.name} ({b.data.size}), or in "
            "another order: only results on the same images can be paired"
        )
    names = ("clean", "pgd", "autoattack")
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in names}
    return {name: mcnemar(one, other) for name, (one, other) in pairs.items() if one and other}
