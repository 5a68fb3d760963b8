"""Accuracy under common corruptions: the same noise for every model, errors by the paper's equation, refusals."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from timm_arat.evaluation import Corruptions, _corrupting, _corruption_sweep, corruptions_table, evaluate_corruptions
from timm_arat.evaluation.__main__ import main
from timm_arat.evaluation._corrupting import COMMON, EXTRA, corrupt

SOME = ("gaussian_noise", "impulse_noise", "contrast")
ROOT = Path(__file__).parents[1]


def _darker(image, severity):
    return np.uint8(image * (1 - 0.1 * severity))


def _noisy(image, severity):
    return np.uint8(np.clip(image + np.random.normal(size=image.shape, scale=10 * severity), 0, 255))


def _peppered(image, severity, seed=None):
    """As the library's: without a seed its noise is new each time."""
    return np.where(np.random.default_rng(seed).random(image.shape) < 0.1 * severity, 0, image).astype(np.uint8)


FUNCTIONS = dict.fromkeys((*COMMON, *EXTRA), _darker) | {"gaussian_noise": _noisy, "impulse_noise": _peppered}


@pytest.fixture
def stand_in(monkeypatch):
    """A small library of the same surface, since the real one is not installed for the tests."""

    def one(image, severity, corruption_name, **others):
        return FUNCTIONS[corruption_name](image, severity, **others)

    found = SimpleNamespace(corrupt=one, corruption_dict=FUNCTIONS)
    monkeypatch.setattr(_corrupting, "library", lambda: found)
    monkeypatch.setattr(_corruption_sweep, "library", lambda: found)
    monkeypatch.setattr(_corruption_sweep, "PACKAGES", ("numpy",))


class Bright(nn.Module):
    """Two classes by the mean of an image, at a threshold."""

    def __init__(self, threshold=0.3):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x):
        edge = 20 * (x.flatten(1).mean(1) - self.threshold)
        return torch.stack([-edge, edge], 1)


def images(n=12, size=32):
    """All of class 1, from 0.31 to 0.9 bright."""
    level = torch.linspace(0.31, 0.9, n)[:, None, None, None]
    return level.expand(n, 3, size, size).clone(), torch.ones(n, dtype=torch.long)


def run(net=None, data=None, **options):
    settings = {"corruptions": SOME, "severities": (1, 5), "batch_size": 5, "progress": False} | options
    return evaluate_corruptions(net or Bright(), data or images(), **settings)


def test_accuracy_is_that_of_the_corrupted_images(stand_in):
    result = run()
    x, _ = images()
    scores = {(each.corruption, each.severity): each.score for each in result.corrupted}
    assert list(scores) == [(name, severity) for name in SOME for severity in (1, 5)]
    for severity in (1, 5):
        levels = (x[:, 0, 0, 0] * 255).round().numpy()
        expected = np.uint8(levels * (1 - 0.1 * severity)) / 255 > 0.3
        assert scores["contrast", severity].correct == tuple(expected.tolist())
    assert 0 < scores["contrast", 5].accuracy < scores["contrast", 1].accuracy <= result.clean.accuracy == 1
    low, high = scores["contrast", 5].interval
    assert low < scores["contrast", 5].accuracy < high and scores["contrast", 5].n == 12


def test_an_image_s_noise_depends_on_its_position_alone(stand_in):
    x, _ = images()
    for name in ("gaussian_noise", "impulse_noise"):
        every = corrupt(x, range(12), name, 3, 0)
        some = corrupt(x[[7, 2]], [7, 2], name, 3, 0)
        assert torch.equal(some, every[[7, 2]])
        same = x[:1].expand(4, -1, -1, -1)
        kinds = [corrupt(same, [0, 0, 1, 2], name, 3, 0), corrupt(same, [0, 0, 1, 2], name, 3, 1)]
        assert torch.equal(kinds[0][0], kinds[0][1])
        others = [kinds[0][1], kinds[0][2], kinds[0][3], kinds[1][0]]
        assert all(not torch.equal(a, b) for i, a in enumerate(others) for b in others[:i])
    assert every.dtype == torch.float32 and 0 <= every.min() and every.max() <= 1
    assert torch.equal((every * 255).round() / 255, every)


def test_the_caller_s_generators_are_left_as_they_were(stand_in):
    np.random.seed(3)
    torch.manual_seed(3)
    before, net = np.random.get_state()[1].copy(), Bright().train()
    run(net)
    assert (np.random.get_state()[1] == before).all() and net.training and net.threshold.requires_grad
    expected = torch.Generator().manual_seed(3)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))


def test_neither_the_batch_nor_the_choice_of_corruptions_changes_a_number(stand_in):
    net = Bright(0.45)
    scores = run(net).corrupted
    assert 0 < sum(each.score.accuracy for each in scores) < len(scores)
    assert run(net, batch_size=12).corrupted == scores
    assert run(net, corruptions=SOME[:1]).corrupted == scores[:2]


def test_two_models_see_the_same_images(stand_in):
    seen = []

    class Sees(Bright):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    for threshold in (0.3, 0.6):
        run(Sees(threshold), images=6)
        seen.append(None)
    first, second = (seen[: seen.index(None)], seen[seen.index(None) + 1 : -1])
    assert len(first) == len(second) and all(map(torch.equal, first, second))


def test_mean_corruption_error_is_the_paper_s(stand_in):
    net, baseline = run(Bright(0.4)), run(Bright(0.6))
    errors = {(each.corruption, each.severity): 1 - each.score.accuracy for each in net.corrupted}
    worse = {(each.corruption, each.severity): 1 - each.score.accuracy for each in baseline.corrupted}
    ce = [sum(errors[name, s] for s in (1, 5)) / sum(worse[name, s] for s in (1, 5)) for name in SOME]
    assert list(net.relative_to(baseline).values()) == pytest.approx(ce)
    assert net.mce(baseline) == pytest.approx(sum(ce) / 3) and 0 < net.mce(baseline) < 1
    assert net.mean_error == pytest.approx(sum(errors.values()) / 6)
    assert baseline.mce(baseline) == 1


def test_a_baseline_that_does_not_fit_is_refused_before_work(stand_in, monkeypatch):
    net = Bright(0.6)
    others = {
        "seed": run(net, seed=1),
        "severities": run(net, severities=(1, 2)),
        "corruptions": run(net, corruptions=SOME[1:]),
        "images": run(net, images=7),
        "no error under": run(Bright(0.0)),
        "data set": run(net, (images()[0], 1 - images()[1])),
    }
    monkeypatch.setattr(_corruption_sweep, "corrupt", lambda *_: pytest.fail("it went to work"))
    for words, baseline in others.items():
        with pytest.raises(ValueError, match=f"the baseline Bright .*{words}"):
            run(net, baseline=baseline)


def test_the_json_comes_back_and_the_table_has_every_number(tmp_path, stand_in):
    result, baseline = run(Bright(0.4), name="mine"), run(Bright(0.6), name="weak")
    result.save(tmp_path / "deep" / "c.json")
    assert Corruptions.load(tmp_path / "deep" / "c.json") == result
    written = json.loads((tmp_path / "deep" / "c.json").read_text())
    assert written["format"] == "timm_arat.corruptions/1" and written["mean_error"] == result.mean_error
    lines = corruptions_table(result, baseline).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:7]}
    assert lines[1].split() == ["corruption", "1", "5", "mean", "CE"]
    for name in SOME:
        accuracies = [100 * each.score.accuracy for each in result.corrupted if each.corruption == name]
        wanted = [*accuracies, sum(accuracies) / 2, 100 * result.relative_to(baseline)[name]]
        assert rows[name] == [f"{number:.1f}" for number in wanted]
    assert rows["mean"][-2:] == [f"{100 - 100 * result.mean_error:.1f}", f"{100 * result.mce(baseline):.1f}"]
    assert "errors relative to those of weak" in lines[-1] and "n=12" in lines[-3]
    assert "mCE" not in corruptions_table(result)
    for text in ("{}", '{"format": "timm_arat.corruptions/1"}', "no"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match="not a result of timm_arat.evaluation.evaluate_corruptions"):
            Corruptions.load(tmp_path / "other.json")


@pytest.mark.parametrize("dies_at", [1, 8])
def test_a_killed_evaluation_goes_on_where_it_stood(tmp_path, monkeypatch, stand_in, dies_at):
    net, calls = Bright(0.45), []
    whole = run(net).corrupted

    def dying(*args):
        calls.append(args[2:4])
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return corrupt(*args)

    monkeypatch.setattr(_corruption_sweep, "corrupt", dying)
    with pytest.raises(KeyboardInterrupt):
        run(net, state=tmp_path / "state")
    assert run(net, state=tmp_path / "state").corrupted == whole
    assert len(calls) == 1 + 3 * 6, "three batches of six, and the one at which it died"
    with pytest.raises(ValueError, match="another evaluation .*severities"):
        run(net, state=tmp_path / "state", severities=(1, 2))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"corruptions": ("fogg",)}, "corruptions has 'fogg': did you mean 'fog'"),
        ({"corruptions": "fog"}, r"corruptions='fog', wanted several"),
        ({"corruptions": ()}, r"corruptions=\(\), wanted several"),
        ({"severities": 3}, "severities=3, wanted several"),
        ({"severities": (0,)}, "severities has 0"),
        ({"severities": (1, 1)}, "each once"),
        ({"images": 0}, "images=0 is not at least 1"),
        ({"data": images(size=28)}, "images are 3x28x28.*at least 32"),
        ({"data": (images()[0][:, :1], images()[1])}, "images are 1x32x32.*three channels"),
        ({"data": (images()[0], 5 + images()[1])}, "labels span 6 to 6"),
    ],
)
def test_what_cannot_be_measured_is_refused(stand_in, options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_without_the_library_an_error_names_the_extra_before_a_model_is_opened(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ImportError, match=r"pip install timm_arat\[corruptions\]"):
        evaluate_corruptions("no_such_model", images())


def test_the_command_prints_the_table_and_takes_a_baseline(tmp_path, monkeypatch, capsys, stand_in):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate.py", "resnet20_cifar_arat", "--data.name", "digits", "--data.image_size", "32"]
    words += ["--data.in_chans", "3", "--pgd_images", "10", "--corruptions", "true"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert "mean corruption error" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["resnet20_cifar_arat.corruptions-digits.json"]
    again = ["--output", "b.json", "--corruption_baseline", "resnet20_cifar_arat.corruptions-digits.json"]
    monkeypatch.setattr(sys, "argv", [*words, *again])
    main()
    assert "mCE 100.0 %" in capsys.readouterr().out
    result = Corruptions.load(tmp_path / "b.json")
    assert list(result.errors) == list(COMMON) and result.severities == (1, 2, 3, 4, 5) and result.clean.n == 10
    for bad in (words, [*words, "--per_class", "true"], [*words[:-2], *again]):
        monkeypatch.setattr(sys, "argv", bad)
        with pytest.raises(SystemExit):
            main()
    said = capsys.readouterr().err
    for message in ("is there: move it", "corruptions is a measurement of its own", "is for --corruptions true"):
        assert message in said


@pytest.mark.extern
@pytest.mark.skipif(not find_spec("imagecorruptions"), reason="uv run --extra corruptions pytest -m extern")
def test_the_real_library_has_these_corruptions_and_keeps_its_seed():
    library = _corrupting.library()
    assert tuple(library.get_corruption_names("common")) == COMMON
    assert tuple(library.get_corruption_names("validation")) == EXTRA
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = nn.functional.interpolate(x, size=(40, 32), mode="bicubic").clamp(0, 1)
    drawn = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    drawn |= {"gaussian_blur", "saturate"}  # without noise
    for name in (*COMMON, *EXTRA):
        for severity in (1, 5):
            once = corrupt(x, [3, 4], name, severity, 0)
            assert once.shape == x.shape and torch.isfinite(once).all() and (once - x).abs().mean() > 0.005
            assert torch.equal(corrupt(x, [3, 4], name, severity, 0), once), name
            assert torch.equal(corrupt(x, [3, 4], name, severity, 1), once) == (name in drawn), name
    weak, strong = ((corrupt(x, [0, 1], "gaussian_noise", s, 0) - x).std() for s in (1, 5))
    assert strong > 2 * weak
