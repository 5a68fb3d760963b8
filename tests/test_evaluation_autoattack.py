import itertools

import pyautoattack
import pytest
import torch
from helpers_evaluation import digits, shorten, trained

from timm_arat import evaluate
from timm_arat.evaluation._autoattack import NORMS, standard_attacks
from timm_arat.evaluation._journal import Journal
from timm_arat.evaluation._loop import run_attacks
from timm_arat.evaluation._model import frozen


def ours_and_theirs(norm, eps, *, num_classes=10, images=16, batch_size=16, short=True, seed=3):
    """x_adv and robust flags of our loop, and of pyautoattack called plainly in this process."""
    net, (x, y) = trained(num_classes), digits(num_classes)
    x, y = x[-images:], y[-images:]
    plain = pyautoattack.AutoAttack(net, norm=NORMS[norm], eps=eps, seed=seed, version="standard")
    if num_classes < 10:
        plain.apgd_targeted.n_target_classes = plain.fab.n_target_classes = num_classes - 1
    with frozen(net):
        attacks = standard_attacks(net, num_classes, norm=norm, eps=eps, seed=seed)
        if short:
            for part in (
                plain.apgd,
                plain.apgd_targeted,
                plain.fab,
                plain.square,
                *(a.args[0] for a in attacks.values()),
            ):
                shorten(part)
        right = net(x).argmax(1) == y
        ours = run_attacks(net, attacks, x, y, right, batch_size=batch_size, seed=seed, journal=Journal(None, {}))
    x_adv, y_adv = plain.run_standard_evaluation(x, y, batch_size=batch_size)
    return ours, x_adv, y_adv == y


def test_standard_version_is_bitwise_the_official_package():
    ours, x_adv, robust = ours_and_theirs("linf", 0.08, short=False)
    assert torch.equal(ours.x_adv, x_adv)
    assert torch.equal(ours.robust["square"], robust)
    assert 0 < robust.sum() < 16, "a sample that is wholly robust or broken would not tell"


@pytest.mark.parametrize(
    "norm, eps, num_classes, batch_size",
    [("linf", 0.1, 10, 7), ("l2", 0.4, 10, 16), ("l1", 1.0, 10, 16), ("linf", 0.1, 5, 9), ("l2", 0.4, 4, 16)],
)
def test_every_norm_class_count_and_batching_is_bitwise_the_official_package(norm, eps, num_classes, batch_size):
    ours, x_adv, robust = ours_and_theirs(norm, eps, num_classes=num_classes, images=40, batch_size=batch_size)
    assert torch.equal(ours.x_adv, x_adv)
    assert torch.equal(ours.robust["square"], robust)
    assert 0 < robust.sum() < 40


def test_settings_are_the_standard_ones():
    attacks = {name: a.args[0] for name, a in standard_attacks(trained(), 10, norm="linf", eps=0.1, seed=0).items()}
    assert list(attacks) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [attacks[name].n_iter for name in ("apgd-ce", "apgd-t", "fab-t")] == [100, 100, 100]
    assert [attacks[name].n_restarts for name in attacks] == [1, 1, 1, 1]
    assert [attacks[name].n_target_classes for name in ("apgd-t", "fab-t")] == [9, 9]
    assert attacks["square"].n_queries == 5000


def test_three_classes_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"at least 4 classes.*has 3.*attacks=\('clean', 'pgd'\)"):
        standard_attacks(trained(), 3, norm="linf", eps=0.1, seed=0)


def test_each_attack_only_sees_images_that_are_still_right():
    ours, _, _ = ours_and_theirs("linf", 0.1, images=40)
    flags = list(ours.robust.values())
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(flags))


def test_fast_evaluation_finds_the_same_images_robust():
    """Folding changes logits by rounding; that it moves no image is not certain, but to be expected of so few."""
    x, y = digits()
    results = [
        evaluate(trained(), (x[-24:], y[-24:]), eps=0.1, attacks=("autoattack",), fast=fast, progress=False)
        for fast in (True, False)
    ]
    fast, exact = (result.autoattack.correct for result in results)
    assert fast == exact and 0 < sum(exact) < 24
    assert [result.attacks["autoattack"] for result in results] == ["standard, BatchNorms folded", "standard"]


def test_a_state_of_the_other_speed_is_refused(tmp_path):
    x, y = digits()
    state = tmp_path / "state"
    evaluate(trained(), (x[:8], y[:8]), attacks=("clean",), fast=True, state=state, progress=False)
    with pytest.raises(ValueError, match="fast True there, False here"):
        evaluate(trained(), (x[:8], y[:8]), attacks=("clean",), fast=False, state=state, progress=False)
