import itertools
from functools import partial

import pyautoattack
import pytest
import torch
from helpers_evaluation import digits, short_attacks, shorten, trained
from torch import nn

from timm_arat import evaluate
from timm_arat.evaluation import _evaluate, table
from timm_arat.evaluation._autoattack import MARGIN, NORMS, _targeted_margin, describe, standard_attacks
from timm_arat.evaluation._journal import Journal
from timm_arat.evaluation._loop import run_attacks
from timm_arat.evaluation._model import frozen


def ours_and_theirs(norm, eps, *, num_classes=10, images=16, batch_size=16, short=True, seed=3):
    """Images and robust flags after each attack by our loop, and by pyautoattack called plainly in this process."""
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
        found = x.clone()

        def keep(name, number, batch, adversarial, predicted):
            broken = predicted != y[batch]
            found[batch[broken]] = adversarial[broken]

        settings = {"batch_size": batch_size, "seed": seed, "journal": Journal(None, {}), "keep": keep}
        robust = run_attacks(net, attacks, x, y, right, **settings).robust
    x_adv, y_adv = plain.run_standard_evaluation(x, y, batch_size=batch_size)
    return (found, robust), (x_adv, y_adv == y)


def test_standard_version_is_bitwise_the_official_package():
    ours, (x_adv, robust) = ours_and_theirs("linf", 0.08, short=False)
    assert torch.equal(ours[0], x_adv)
    assert torch.equal(ours[1]["square"], robust)
    assert 0 < robust.sum() < 16, "a sample that is wholly robust or broken would not tell"


@pytest.mark.parametrize(
    "norm, eps, num_classes, batch_size",
    [("linf", 0.1, 10, 7), ("l2", 0.4, 10, 16), ("l1", 1.0, 10, 16), ("linf", 0.1, 5, 9), ("l2", 0.4, 4, 16)],
)
def test_every_norm_class_count_and_batching_is_bitwise_the_official_package(norm, eps, num_classes, batch_size):
    ours, (x_adv, robust) = ours_and_theirs(norm, eps, num_classes=num_classes, images=40, batch_size=batch_size)
    assert torch.equal(ours[0], x_adv)
    assert torch.equal(ours[1]["square"], robust)
    assert 0 < robust.sum() < 40


def test_settings_are_the_standard_ones():
    attacks = {name: a.args[0] for name, a in standard_attacks(trained(), 10, norm="linf", eps=0.1, seed=0).items()}
    assert list(attacks) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [attacks[name].n_iter for name in ("apgd-ce", "apgd-t", "fab-t")] == [100, 100, 100]
    assert [attacks[name].n_restarts for name in attacks] == [1, 1, 1, 1]
    assert [attacks[name].n_target_classes for name in ("apgd-t", "fab-t")] == [9, 9]
    assert attacks["square"].n_queries == 5000


@pytest.mark.parametrize(("num_classes", "norm"), [(8, "l1"), (8, "l2"), (6, "l1"), (10, "l1")])
def test_the_number_of_targets_is_said_as_it_is(num_classes, norm):
    attacks = standard_attacks(trained(num_classes), num_classes, norm=norm, eps=0.1, seed=0)
    apgd, fab = (attacks[name].args[0].n_target_classes for name in ("apgd-t", "fab-t"))
    said = describe(num_classes, [norm])
    if num_classes == 10:
        assert (apgd, fab, said) == (5, 9, "standard")
    elif apgd == fab:
        assert said == f"standard, {fab} targets"
    else:
        assert said == f"standard, {fab} targets ({apgd} of APGD-T for l1)"


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.4), ("l1", 1.0)])
def test_fewer_than_four_classes_climb_the_margin_and_say_so(num_classes, norm, eps, monkeypatch):
    monkeypatch.setattr(_evaluate, "standard_attacks", short_attacks)
    x, y = digits(num_classes)
    result = evaluate(trained(num_classes), (x[-60:], y[-60:]), norm=norm, eps=eps, progress=False)
    assert result.attacks["autoattack"].startswith(f"{MARGIN}, {num_classes - 1} target")
    assert "AutoAttack*: not the standard version" in table(result) and "(n=60)*" in table(result)
    assert "*" not in table(evaluate(trained(), digits(), pgd_images=20, attacks=("pgd",), progress=False))


def test_the_margin_breaks_what_the_targeted_loss_breaks():
    """With four classes both are defined, and APGD-T alone, 100 steps, is as strong with either."""
    net, (x, y) = trained(4), digits(4)
    x, y = x[-80:], y[-80:]
    left = []
    for loss in (None, _targeted_margin):
        with frozen(net):
            part = standard_attacks(net, 4, norm="linf", eps=0.15, seed=0)["apgd-t"].args[0]
            if loss is not None:
                part.dlr_loss_targeted = partial(loss, part)
            left.append(int((net(part.perturb(x, y)).argmax(1) == y).sum()))
    assert abs(left[0] - left[1]) <= 2 and 0 < left[0] < 70


@pytest.mark.parametrize("shape", [(1, 8, 10), (1, 4, 4)], ids=str)
def test_sizes_that_square_cannot_search_are_refused_before_anything_runs(shape):
    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 10))
    x, y = torch.rand(4, *shape), torch.arange(4)
    with pytest.raises(ValueError, match=rf"images are {shape[1]}x{shape[2]}, and AutoAttack's Square"):
        evaluate(net, (x, y), norm="l2", eps=0.5, progress=False)
    assert evaluate(net, (x, y), norm="l2", eps=0.5, attacks=("pgd",), progress=False).clean.n == 4


def test_each_attack_only_sees_images_that_are_still_right():
    (_, flags), _ = ours_and_theirs("linf", 0.1, images=40)
    assert len(flags) == 4
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(flags.values()))


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


def test_a_network_without_batchnorms_has_none_folded():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LayerNorm(3 * 16 * 16), torch.nn.Linear(3 * 16 * 16, 10))
    x, y = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    result = evaluate(net, (x, y), attacks=("clean", "autoattack"), fast=True, progress=False)
    assert not result.fast and result.attacks["autoattack"] == "standard"


def test_a_state_of_the_other_speed_is_refused(tmp_path):
    x, y = digits()
    state = tmp_path / "state"
    evaluate(trained(), (x[:8], y[:8]), attacks=("clean",), fast=True, state=state, progress=False)
    with pytest.raises(ValueError, match="fast True there, False here"):
        evaluate(trained(), (x[:8], y[:8]), attacks=("clean",), fast=False, state=state, progress=False)
