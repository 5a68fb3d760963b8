"""Several threats in one call: what is known from one eps is used at another, and the outcome is as attacking anew."""

import json
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch

from timm_arat import PGD, evaluate, in_pixels
from timm_arat.evaluation import Threats, evaluate_threats, threats_table
from timm_arat.evaluation import _sweep as sweep


class Thresholds(torch.nn.Module):
    """Two classes by the first pixel: an image is broken exactly within |pixel - 0.5| of linf."""

    def forward(self, x):
        edge = 20 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-edge, edge], 1) + 0 * x.flatten(1).sum(1, keepdim=True)


def images(distances):
    x = torch.full((len(distances), 1, 6, 6), 0.5)
    x[:, 0, 0, 0] += torch.tensor(distances)
    return x, torch.ones(len(distances), dtype=torch.long)


DATA = images([-0.1, 0.01, 0.03, 0.05, 0.07, 0.2])
DATA_RGB = (torch.rand(4, 3, 8, 8), torch.arange(4))
SETTINGS = dict(progress=False, batch_size=3)


def test_a_curve_breaks_each_image_where_its_distance_says():
    result = evaluate_threats(
        Thresholds(), DATA, {"linf": [0.02, 0.04, 0.06, 0.1]}, attacks=("clean", "pgd"), **SETTINGS
    )
    assert result.clean.correct == (False, True, True, True, True, True)
    right = {each.eps: sum(each.score.correct) for each in result.threats}
    assert right == {0.02: 4, 0.04: 3, 0.06: 2, 0.1: 1}
    # At 0.1 all five that are right; below it only those that were broken: each is attacked in vain once at most.
    assert {each.eps: each.attacked for each in result.threats} == {0.1: 5, 0.06: 4, 0.04: 3, 0.02: 2}


def test_the_strongest_attack_runs_wherever_it_is_named_and_folding_is_said():
    net = timm.create_model("resnet20_cifar", layers=(1, 1), channels=(4, 8), num_classes=4)
    for attacks in (("pgd", "clean"), ("clean", "pgd")):
        result = evaluate_threats(net, DATA_RGB, {"linf": [0.02]}, attacks=attacks, fast=True, **SETTINGS)
        assert (result.attack, result.version) == ("pgd", "PGD-20, BatchNorms folded")
    with pytest.raises(ValueError, match=r"attacks=\(\) has no attack to run at a threat"):
        evaluate_threats(net, DATA_RGB, {"linf": [0.02]}, attacks=(), **SETTINGS)


@pytest.mark.parametrize("attack", ["pgd", "autoattack"])
def test_the_largest_eps_is_what_evaluate_gives_there(attack):
    torch.manual_seed(0)
    net = timm.create_model(
        "resnet20_cifar", layers=(1, 1), channels=(4, 8), num_classes=4, zero_init_last=False
    ).eval()
    x = torch.rand(6, 3, 8, 8)
    y = in_pixels(net)(x).argmax(1)
    settings = dict(attacks=("clean", attack), seed=3, **SETTINGS)
    result = evaluate_threats(
        net, (x, y), {"linf": [0.02, 0.06], "l2": [0.5]} if attack == "pgd" else {"linf": [0.02, 0.06]}, **settings
    )
    for threat in result.threats[1:]:
        alone = evaluate(net, (x, y), norm=threat.norm, eps=threat.eps, **settings)
        assert threat.score == getattr(alone, attack)
    small, large, *others = (each.score.correct for each in result.threats)
    assert all(a or not b for a, b in zip(small, large, strict=True)), "right at the larger eps, right at the smaller"
    assert 0 < sum(large) < 6, "a test of something"
    assert result.worst.correct == tuple(map(all, zip(large, *others, strict=True)))


def test_a_killed_sweep_goes_on_where_it_stood(tmp_path, monkeypatch):
    threats = {"linf": [0.02, 0.06]}
    settings = dict(attacks=("clean", "pgd"), **SETTINGS)
    whole = evaluate_threats(Thresholds(), DATA, threats, **settings)
    calls = []
    attack = sweep.PGD.perturb

    def dies(self, *args, **kwargs):
        calls.append(self.eps)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attack(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sweep.PGD, "perturb", dies)
        with pytest.raises(KeyboardInterrupt):
            evaluate_threats(Thresholds(), DATA, threats, state=tmp_path / "state", **settings)
        del calls[:]
        calls.append(0)  # so that it does not die again at once
        resumed = evaluate_threats(Thresholds(), DATA, threats, state=tmp_path / "state", **settings)
    assert [each.score for each in resumed.threats] == [each.score for each in whole.threats]
    with pytest.raises(ValueError, match="threats .* there"):
        evaluate_threats(Thresholds(), DATA, {"linf": [0.03]}, state=tmp_path / "state", **settings)


def test_the_json_comes_back_and_the_table_names_the_worst_case(tmp_path):
    result = evaluate_threats(
        Thresholds(), DATA, {"linf": [0.06], "l2": [0.04]}, attacks=("clean", "pgd"), name="thresholds", **SETTINGS
    )
    result.save(tmp_path / "threats.json")
    assert Threats.load(tmp_path / "threats.json") == result
    lines = threats_table(result).splitlines()
    assert lines[0] == "thresholds: PGD-20 on 6 images of tensors"
    assert [line.split("  ")[0] for line in lines[3:]] == ["unchanged", "linf 0.06", "l2 0.04", "all of them"]
    (tmp_path / "threats.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match=r"threats.json is not a result of timm_arat.evaluation.evaluate_threats"):
        Threats.load(tmp_path / "threats.json")


def test_what_has_no_batchnorm_is_not_said_to_be_folded(monkeypatch):
    monkeypatch.setattr(sweep, "standard_attacks", lambda *args, **kwargs: {})
    monkeypatch.setattr(sweep, "_named", lambda net, *args: {"square": partial(PGD(eps=0.03, steps=2).perturb, net)})
    settings = SETTINGS | {"attacks": ("clean", "autoattack"), "fast": True}
    assert "folded" not in evaluate_threats(Thresholds(), DATA, {"linf": [0.03]}, **settings).version


@pytest.mark.parametrize(
    ("threats", "settings", "words"),
    [
        ({}, {}, "names no eps"),
        ({"linf": [8]}, {}, r"eps=8 is not in \(0, 1\)"),
        ({"l3": [1.0]}, {}, "l3"),
        ({"linf": [0.1]}, {"attacks": ("clean",)}, "no attack to run"),
    ],
)
def test_threats_that_cannot_be_are_refused(threats, settings, words):
    with pytest.raises(ValueError, match=words):
        evaluate_threats(Thresholds(), DATA, threats, **{"attacks": ("clean", "pgd"), **SETTINGS, **settings})


def test_the_command_writes_a_curve_and_its_picture(tmp_path):
    words = ["resnet20_cifar_arat", "--data.name", "digits", "--data.image_size", "32", "--data.in_chans", "3"]
    words += ["--attack", "pgd", "--pgd_images", "20", "--threats", "{linf: [1/255, 2/255], l2: [0.1]}"]
    command = [sys.executable, "-m", "timm_arat.evaluation", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "linf 2/255" in done.stdout and "all of them" in done.stdout
    # Made for CIFAR-10: another data set is said, and is in the name of the file.
    assert "not what resnet20_cifar_arat was made for: data.name digits in the place of" in done.stdout
    assert (tmp_path / "resnet20_cifar_arat.threats-digits.png").stat().st_size > 5000
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2 and "is there: move it, or give --output" in again.stderr


def test_a_pipe_gets_a_line_a_minute_and_a_terminal_a_bar(monkeypatch):
    from timm_arat.evaluation import _progress

    clock = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: clock[0])
    lines = []
    net = torch.nn.Identity()
    with _progress.Progress(1000, lines.append).watching(net) as progress:
        progress.advance("clean", 10, True)
        clock[0] = 59.0
        net(torch.zeros(10, 3, 2, 2))
        assert not lines
        clock[0] = 61.0
        net(torch.zeros(30, 3, 2, 2, requires_grad=True))
        # 10 + 10 + 3 * 30 passes in 61 s; of the 890 that are left none takes longer.
        assert lines == ["evaluation  11 % of the passes, at most 8 min left"]
        progress.advance("square", 1, False)  # broken before: 5,000 passes that need not be run
    assert not net._forward_pre_hooks
