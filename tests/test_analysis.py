"""The paper's analyses: numbers against hand computation, and a companion that leaves no trace in a training."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import helpers_engine
import pytest
import torch
from helpers_engine import companion, forget, fresh_accelerate, rows, same, session_of  # noqa: F401  # a fixture
from safetensors.torch import load_file
from torch import nn

from timm_arat.analysis import OneTerm, Spread, conflict, distance, drift, estimate, invariance, running_statistics
from timm_arat.analysis.rows import read
from timm_arat.diagnose import main
from timm_arat.engine.companions.analysis import Analysis
from timm_arat.engine.config import AnalysisConfig, AverageConfig
from timm_arat.engine.diagnosis import diagnose
from timm_arat.engine.train import train
from timm_arat.methods import AdvPropConfig, ARATConfig, MadryConfig, Method, Terms, TRADESConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class Linear(Method):
    """ce_clean = a . x summed over images, align = b . x': each gradient is the image itself."""

    Config = ARATConfig

    def __init__(self, terms=("ce_clean", "align", "ce_adv")):
        nn.Module.__init__(self)
        self.network = nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1))
        self.names, self.weighting = terms, dict(zip(("ce_clean", "align", "ce_adv"), (1.0, 3.0, 0.5), strict=True))
        self.frozen_norms = []

    def terms(self, x, y, x_adv):
        self.network(x)  # moves the running statistics, and draws
        torch.rand(1)
        outs = {"ce_clean": self.network[0](x).sum(), "align": self.network[0](x_adv).sum(), "ce_adv": y.sum() * 1.0}
        return Terms({n: outs[n] for n in self.names}, {n: self.weighting[n] for n in self.names}, x)


X, X_ADV = torch.tensor([[3.0, 0.0, 4.0, 0.0]]).repeat(2, 1) / 2, torch.tensor([[-3.0, 2.0, 4.0, 6.0]]).repeat(2, 1) / 2
Y = torch.zeros(2)


def test_conflict_of_a_linear_network_is_what_it_is_by_hand():
    method = Linear()
    before = {name: b.clone() for name, b in method.named_buffers()}
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    found = conflict(method, X, Y, X_ADV)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(b, before[name]) for name, b in method.named_buffers())
    assert all(p.grad is None for p in method.parameters())
    # Gradients (3, 0, 4, 0), (-3, 2, 4, 6) and none: a dot product of 7, one of four signs opposite.
    lengths = {"ce_clean": 5.0, "align": math.sqrt(65), "ce_adv": 0.0}
    assert found.whole.size == 4
    assert found.whole.norms == pytest.approx(lengths)
    pair = found.whole.pairs["ce_clean|align"]
    assert (pair.cos, pair.share) == (pytest.approx(7 / (5 * math.sqrt(65))), 0.25)
    nothing = found.whole.pairs["align|ce_adv"]
    assert (nothing.cos, nothing.share) == (None, 0.0)
    # Weighted: each length times its weight, and of the sum (3 - 9, 6, 4 + 12, 18).
    weighted = {"ce_clean": 5.0, "align": 3 * math.sqrt(65), "ce_adv": 0.0, "loss": math.hypot(6, 6, 16, 18)}
    assert found.whole.weighted_norms == pytest.approx(weighted)
    assert found.weights == {"ce_clean": 1.0, "align": 3.0, "ce_adv": 0.5}
    assert found.layers == {"0": found.whole}


def test_the_official_definition_compares_the_weighted_cross_entropies_with_the_rest():
    found = conflict(Linear(), X, Y, X_ADV, official=True).whole
    assert found.norms == pytest.approx({"classify": 5.0, "align": 3 * math.sqrt(65)})
    assert list(found.pairs) == ["classify|align"] and found.pairs["classify|align"].share == 0.25
    with pytest.raises(OneTerm, match="one term only, classify"):
        conflict(Linear(terms=("ce_clean", "ce_adv")), X, Y, X_ADV, official=True)


def test_one_term_is_in_conflict_with_nothing():
    with pytest.raises(OneTerm, match="one term only, align"):
        conflict(Linear(terms=("align",)), X, Y, X_ADV)


@pytest.mark.parametrize("kind", [ARATConfig, TRADESConfig])
def test_the_terms_gradients_are_those_of_training(tmp_path, kind):
    session = session_of(helpers_engine.tiny(tmp_path, method=kind()))
    method = session.method.train()
    x, y = next(iter(session.loader))
    x, x_adv = method.perturb(x, y)
    found = conflict(method, x, y, x_adv)
    layers = {n: m for n, m in method.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert list(found.layers) == list(layers) and "fc" in layers and any("downsample" in name for name in layers)
    method(x, y, x_adv)["loss"].backward()
    total = 0.0
    for name, module in layers.items():
        length = float(module.weight.grad.norm())
        assert found.layers[name].weighted_norms["loss"] == pytest.approx(length, rel=1e-3, abs=1e-6)
        total += length**2
    assert found.whole.weighted_norms["loss"] == pytest.approx(math.sqrt(total), rel=1e-3)
    assert found.whole.size == sum(part.size for part in found.layers.values())


def test_distance_invariance_and_drift_by_hand():
    z, z_adv = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert (distance(z, z_adv).mean, distance(z, z_adv).n) == (3.5, 2)  # 5 and 2
    assert invariance(z[1:], z_adv[1:]).mean == pytest.approx(1 / math.sqrt(5))
    assert drift(z, z).mean == pytest.approx(0)
    assert drift(z, 2 * z.flip(1)).mean == pytest.approx((1 - 24 / 25 + 1) / 2)
    with pytest.raises(ValueError, match=r"\(2, 2\) are not"):
        drift(z, z[:1])
    found = estimate([1.0, 2.0, 3.0])
    assert found.interval_95 == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    assert estimate([1.0]).interval_95 is None
    values = torch.tensor([-1.0, 1.0]).repeat(20)  # n = 40: Student's quantile is 2.0227
    assert estimate(values).interval_95[1] * math.sqrt(39) == pytest.approx(2.0227, rel=1e-3)


def test_the_spread_is_the_variance_over_steps():
    norm = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(2))
    spread, history = Spread(), []
    assert spread.variances({}) == {}
    for _ in range(5):
        norm[0](torch.rand(4, 3, 2, 2))
        spread.take(running_statistics(norm))
        history.append(norm[0].running_mean.clone())
    found = spread.variances(running_statistics(norm))
    expected = torch.stack(history).var(0).mean()
    assert found["main/0/running_mean"] == pytest.approx(float(expected), rel=1e-4)
    assert found["main/1/running_var"] == 0.0


def test_a_training_is_bitwise_the_one_without_and_the_command_reads_it(tmp_path, monkeypatch, capsys):
    config = helpers_engine.tiny(
        tmp_path / "with", method=ARATConfig(weight=5.0), analysis=AnalysisConfig(every=4, images=20, steps=2)
    )
    train(config)
    forget()
    train(replace(config, output=str(tmp_path / "without"), analysis=AnalysisConfig()))
    found, expected = (load_file(tmp_path / name / "weights/last.safetensors") for name in ("with", "without"))
    assert same(found, expected)
    assert not (tmp_path / "without" / "analysis.jsonl").exists()
    assert "analysis_seconds" not in rows(tmp_path / "without")[0]
    written = read(tmp_path / "with" / "analysis.jsonl")
    steps = [row for row in written if row["kind"] == "conflict"]
    epochs = [row for row in written if row["kind"] == "epoch"]
    assert [row["step"] for row in steps] == list(range(0, epochs[-1]["step"], 4))
    assert all(-1 <= row["whole"]["pairs"]["ce_adv|invariance"]["cos"] <= 1 and row["n"] == 128 for row in steps)
    first, second = epochs
    assert first["drift"] == {} and set(second["drift"]) == {"last", "predicted/last"}
    assert second["drift"]["last"]["mean"] > 0
    for kind in ("main", "own"):
        assert second["layers"]["last"][kind]["distance"]["n"] == 20
        assert second["layers"]["last"][kind]["distance"]["mean"] > 0
    assert any(name.startswith("aux/") and value > 0 for name, value in second["statistics_variance"].items())
    seconds = sum(row["seconds"] for row in written if row["epoch"] == 1)
    assert rows(tmp_path / "with")[0]["analysis_seconds"] == pytest.approx(seconds)

    # The command, of these two runs side by side and of the exported model alone.
    runs = [str(tmp_path / "with"), str(tmp_path / "without")]
    model = str(tmp_path / "with" / "model")
    small = ["--images", "20", "--batches", "2", "--steps", "2", "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["diagnose.py", *runs, model, *small])
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["diagnose.py", *runs, "--data.image_size", "8"])
        with pytest.raises(SystemExit):
            main()
        assert "give --data.name, too" in capsys.readouterr().err
    main()
    first, second, alone = (
        json.loads(each.read_text())
        for each in (*(Path(run) / "analysis.json" for run in runs), Path(f"{model}.analysis.json"))
    )
    kept = {"format", "threat", "data", "method", "weights", "conflict", "layers"}
    assert {key: first[key] for key in kept} == {key: second[key] for key in kept}  # the same weights
    assert first["conflict"]["whole"]["pairs"]["ce_adv|invariance"]["cos"]["n"] == 2
    assert first["conflict"]["batch"] == 128 and first["threat"] == {"norm": "linf", "eps": 0.1, "steps": 2}
    assert alone["layers"]["last"]["own"] is None and "conflict" not in alone
    assert alone["threat"] == first["threat"] and alone["data"] == "digits"
    ours, plain = (each["layers"]["last"]["main"] for each in (first, alone))
    assert plain["invariance"]["n"] == 20 and plain["distance"]["mean"] > 0
    low, high = ours["invariance"]["interval_95"]
    assert low < ours["invariance"]["mean"] < high
    out = tmp_path / "out"
    table = (out / "analysis.md").read_text()
    assert f"| {runs[0]} | last | 20 | {ours['invariance']['mean']:.3f} (" in table
    assert f"| {runs[1]} | ce_adv and invariance | 2 |" in table
    last = read(Path(runs[0]) / "analysis.jsonl")[-1]
    means = [value for name, value in last["statistics_variance"].items() if name.endswith("running_mean")]
    half = len(means) // 2  # as many norms in each branch, the main one first
    main_mean, aux_mean = (f"{sum(part) / half:.2g}" for part in (means[:half], means[half:]))
    assert re.search(rf"\| last \| {last['drift']['last']['mean']:.3f} .*\| {main_mean} \| {aux_mean} \|", table)
    drawn = {f"analysis_{name}.png" for name in ("similarity", "conflict", "norms", "distance", "drift")}
    assert {path.name for path in out.glob("*.png")} == drawn


def test_the_features_of_an_averaged_run_are_those_of_the_average(tmp_path):
    average = AverageConfig(kind="ema", decay=0.5, batches=2)
    train(helpers_engine.tiny(tmp_path / "run", average=average, epochs=1))
    small = {"images": 20, "batches": 0, "steps": 2, "device": "cpu"}
    run, model = (diagnose(str(tmp_path / "run" / part), **small) for part in (".", "model"))
    assert run["layers"] == model["layers"], "of what is exported"
    assert run["weights"] == "checkpoints/epoch-0001-step-000000, and of the averaged weights in " + (
        "weights/last.safetensors the features"
    )


def test_off_is_not_built_and_calls_nothing(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("called")

    for name in ("conflict", "see", "running_statistics"):
        monkeypatch.setattr(f"timm_arat.engine.companions.analysis.{name}", never)
    monkeypatch.setattr(Analysis, "__init__", never)
    train(helpers_engine.tiny(tmp_path, method=ARATConfig(), epochs=1))


def test_a_method_of_one_term_has_its_features_taken_all_the_same(tmp_path, capsys):
    config = helpers_engine.tiny(
        tmp_path, method=MadryConfig(), analysis=AnalysisConfig(every=1, images=10, steps=1), epochs=1
    )
    train(config)
    (row,) = read(tmp_path / "analysis.jsonl")
    assert row["kind"] == "epoch" and row["layers"]["last"]["own"] is None
    assert capsys.readouterr().out.count("no conflict of gradients is measured") == 1


def test_an_auxiliary_branch_of_adversarial_images_is_not_called_the_clean_ones_own(tmp_path):
    settings = AnalysisConfig(every=1, images=10, steps=1)
    train(helpers_engine.tiny(tmp_path, method=AdvPropConfig(), analysis=settings, epochs=1))
    last = read(tmp_path / "analysis.jsonl")[-1]
    assert last["kind"] == "epoch" and last["layers"]["last"]["own"] is None
    found = diagnose(str(tmp_path), images=10, batches=0, steps=1)
    assert found["layers"]["last"]["own"] is None


@pytest.mark.parametrize("settings", [{"every": -1}, {"images": 0}, {"steps": 0}])
def test_bad_settings_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        AnalysisConfig(**settings)
