"""Each warning of masked gradients on a model made to deserve it, and none on an honest one."""

import pytest
import torch
from helpers_evaluation import EPS, digits, short_attacks, trained
from torch import nn

from timm_arat.evaluation import Score, _evaluate, evaluate
from timm_arat.evaluation._masking import masking_warnings


class Quantized(nn.Module):
    """Rounds its input, so that its gradient is zero everywhere; no more robust than the model behind it."""

    def __init__(self):
        super().__init__()
        self.model = trained()

    def forward(self, x):
        return self.model(torch.round(8 * x) / 8)


class Misleading(nn.Module):
    """Honest on stored images (multiples of 1/16), with reversed gradients everywhere else."""

    def __init__(self):
        super().__init__()
        self.model = trained()

    def forward(self, x):
        stored = (16 * x == (16 * x).round()).all()
        return self.model(x if stored else 2 * x.detach() - x)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_evaluate, "standard_attacks", short_attacks)


def run(net, attacks=("clean", "pgd"), images=60):
    x, y = digits()
    return evaluate(net, (x[-images:], y[-images:]), eps=EPS, attacks=attacks, progress=False)


def test_honest_model_gets_no_warning():
    assert run(trained(), ("clean", "pgd", "autoattack")).warnings == ()


def test_zero_gradients_and_a_strong_square_are_reported():
    result = run(Quantized(), ("clean", "pgd", "autoattack"))
    zero, *_, square = result.warnings
    assert "met a gradient of zeros" in zero and result.zero_gradient == sum(result.clean.correct)
    assert "Square, which uses no gradient, breaks" in square


def test_more_steps_weaker_than_one_is_reported():
    assert "more steps should never be weaker" in run(Misleading()).warnings[-1]


def scored(**right):
    """Scores of 100 images, of which these many are right; `unbounded` is over the last 50."""
    return {
        name: Score.of(range(50, 100), [i >= 100 - n for i in range(50, 100)], [0] * 50, 1)
        if name == "unbounded"
        else Score.of(range(100), [i >= 100 - n for i in range(100)], [0] * 100, 1)
        for name, n in right.items()
    }


@pytest.mark.parametrize(
    "scores, sign",
    [
        (scored(clean=90, unbounded=3), "PGD at linf 0.5 leaves 3 of 50 images"),
        (scored(clean=90, pgd=50, square=38), "AutoAttack is 12.0 points below PGD"),
        (scored(clean=90, pgd=30, square=37), "PGD breaks 7 images that AutoAttack leaves"),
    ],
    ids=["unbounded", "far below", "above"],
)
def test_each_sign_is_told_from_the_scores(scores, sign):
    (warning,) = masking_warnings(scores, 0)
    assert warning.startswith(sign)


@pytest.mark.parametrize(
    "scores",
    [scored(clean=90, unbounded=2), scored(clean=90, pgd=50, square=41), scored(clean=90, pgd=30, square=32)],
    ids=["unbounded", "below", "above"],
)
def test_what_happens_to_honest_models_is_no_sign(scores):
    assert masking_warnings(scores, 0) == ()


def test_one_image_broken_by_square_is_no_sign_but_two_are():
    def scores(left):
        flags = [True] * 20
        after = [i < left for i in range(20)]
        return {name: Score.of(range(20), f, [0] * 20, 1) for name, f in (("fab-t", flags), ("square", after))}

    assert not masking_warnings(scores(19), 0)
    assert masking_warnings(scores(18), 0)
