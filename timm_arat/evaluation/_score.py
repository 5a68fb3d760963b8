"""One accuracy: which images stayed rightly classified, and everything that follows from it."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_INDICES = 10_000_000
Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of `right` in `n` (Wilson 1927); unlike +-1.96 s it holds at 0 and n, too."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding must not put a limit beyond the share itself, as at 0 and n, where the two are equal.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@dataclass(frozen=True)
class Score:
    """Accuracy under one attack, image by image.

    indices: positions in the data set, ascending, N of them. correct: N, whether each is still rightly classified.
    per_class: one (right, n) for each of the model's classes.
    """

    indices: tuple[int, ...]
    correct: tuple[bool, ...]
    per_class: tuple[tuple[int, int], ...]

    @staticmethod
    def of(indices: Sequence[int], correct: Sequence[bool], labels: Sequence[int], num_classes: int) -> "Score":
        """Count classes; all three sequences are N long, labels in [0, num_classes)."""
        right, n = [0] * num_classes, [0] * num_classes
        for is_right, label in zip(correct, labels, strict=True):
            right[label] += is_right
            n[label] += 1
        return Score(tuple(indices), tuple(map(bool, correct)), tuple(zip(right, n, strict=True)))

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(sum(self.correct), self.n)

    def by_index(self) -> dict[int, bool]:
        return dict(zip(self.indices, self.correct, strict=True))

    def __add__(self, other: "Score") -> "Score":
        """The score on both sets of images, which must be disjoint."""
        both = sorted([*self.by_index().items(), *other.by_index().items()])
        indices, correct = zip(*both, strict=True) if both else ((), ())
        if len(set(indices)) < len(indices):
            twice = next(i for i, j in itertools.pairwise(indices) if i == j)
            raise ValueError(
                f"image {twice} is in both results: give each process its own indices, such as range(0, 500)"
            )
        per_class = tuple((a + c, b + d) for (a, b), (c, d) in zip(self.per_class, other.per_class, strict=True))
        return Score(indices, correct, per_class)

    def to_json(self) -> dict[str, Any]:
        """Accuracy and interval stand there for readers; `from_json` computes them again from `correct`."""
        low, high = self.interval
        return {
            "accuracy": self.accuracy if self.n else None,  # NaN is not JSON
            "n": self.n,
            "interval_95": [low, high],
            "per_class": {"right": [right for right, _ in self.per_class], "n": [n for _, n in self.per_class]},
            "indices": pack_indices(self.indices),
            "correct": pack_bits(self.correct),
        }

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Score":
        return Score(
            unpack_indices(fields["indices"]),
            unpack_bits(fields["correct"], fields["n"]),
            tuple(zip(fields["per_class"]["right"], fields["per_class"]["n"], strict=True)),
        )


def pack_bits(bits: Iterable[bool]) -> str:
    """Booleans as hexadecimal digits, first image first, padded with zeros to whole bytes."""
    return np.packbits(np.array(list(bits), dtype=bool)).tobytes().hex()


def unpack_bits(text: str, n: int) -> tuple[bool, ...]:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))
    if not n <= len(bits) < n + 8:
        raise ValueError(
            f"{len(bits)} packed bits do not hold n={n} images: the file was changed by hand, evaluate again"
        )
    return tuple(map(bool, bits[:n]))


def pack_indices(indices: Sequence[int]) -> str:
    """Ascending indices as runs, such as '0-9999' or '3,7-9': a person can read them, and a whole test set is short."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def unpack_indices(text: str) -> tuple[int, ...]:
    """What `pack_indices` packed. ValueError for more images than any data set has, as only a forged file names."""
    runs = [run.partition("-") for run in text.split(",") if run]
    if sum(int(last or first) - int(first) + 1 for first, _, last in runs) > MOST_INDICES:
        raise ValueError(f"indices {text[:40]!r} name more than {MOST_INDICES:,} images: evaluate again")
    return tuple(i for first, _, last in runs for i in range(int(first), int(last or first) + 1))


def cell(score: Score | None) -> str:
    """The accuracy in % with half of its 95 % interval and n; a dash without one."""
    return share_text(sum(score.correct), score.n) if score else "-"


def share_text(right: int, n: int) -> str:
    """A share of `right` in `n` in % with half of its 95 % interval and n; a dash where n is 0."""
    if not n:
        return "-"
    low, high = wilson(right, n)
    return f"{100 * right / n:.1f} \u00b1 {50 * (high - low):.1f} (n={n})"
