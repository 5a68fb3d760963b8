"""A comparison of training methods: configuration, passes counted, runs that fail or are stopped, and the table."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers_engine import DATA, fresh_accelerate, session_of, tiny  # noqa: F401  # a fixture

from timm_arat import PGD
from timm_arat.compare import progress
from timm_arat.compare.config import read_comparison, runs_of
from timm_arat.compare.cost import Cost
from timm_arat.compare.outcome import Line, Outcome, against
from timm_arat.compare.plot import frontier, plot
from timm_arat.compare.predict import _stand_alone
from timm_arat.compare.prediction import load
from timm_arat.compare.run import _start, check_settings, finished, to_do
from timm_arat.compare.table import as_csv, as_json, markdown
from timm_arat.config import comparisons, dump
from timm_arat.engine.best import best_epoch
from timm_arat.engine.companions import COMPANIONS
from timm_arat.engine.config import AnalysisConfig, AWPConfig, ModelConfig
from timm_arat.engine.costs import Passes
from timm_arat.engine.recipe import VARIANTS
from timm_arat.evaluation import Robustness, compare
from timm_arat.methods import ARATConfig, MadryConfig, TRADESConfig

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
COMPARISON = """
recipe: digits
settings:
  data: {val_size: 100, batch_size: 256}
  model: {kwargs: {layers: [1, 1], channels: [4, 8]}}
  attack: {steps: 1}
  optimizer: {warmup_epochs: 0}
  validation: {steps: 1}
  evaluation: {attacks: [clean, pgd], pgd_images: 40}
  epochs: 2
rows:
  standard: {settings: {method: {name: standard}}}
  madry: {settings: {method: {name: madry}}}
seeds: [0, 1]
jobs: 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "methods.yaml"
    path.write_text(COMPARISON)
    return path


def command(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "timm_arat.compare", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


@pytest.mark.long
def test_two_rows_and_two_seeds_go_on_after_a_kill_and_past_a_failure(file, tmp_path):
    # A third row whose training runs away at once; a fourth one that needs it.
    text = file.read_text().replace(
        "seeds:",
        "  broken: {settings: {method: {name: madry}, optimizer: {lr: 1.e+30}}}\n"
        "  hat: {settings: {method: {name: hat}}, after: broken}\nseeds:",
    )
    file.write_text(text)
    out = tmp_path / "out"
    first = command(file, "--output", out)
    deadline = time.monotonic() + 240
    while not list(out.glob("*/checkpoints/epoch-*")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)[0]
    assert first.returncode == 130 and "the same command goes on" in said, said
    assert "madry: seed 1 is not finished." in (out / "comparison.md").read_text()

    again = command(file, "--output", out)
    said = again.communicate(timeout=400)[0]
    assert again.returncode == 2, said
    assert "a loss of this epoch is not finite" in said and "broken-1, which it comes after, failed" in said
    assert any(log.read_text().count("resumed from") for log in out.glob("*.log"))
    rows = {row["row"]: row for row in json.loads((out / "comparison.json").read_text())["rows"]}
    for name in ("standard", "madry"):
        assert [run["seed"] for run in rows[name]["runs"]] == [0, 1]
        for run in rows[name]["runs"]:
            stored = Robustness.load(out / f"{name}-{run['seed']}" / "results.json")
            assert run["pgd"]["accuracy"] == stored.pgd.accuracy
            assert run["processor_minutes"] > 0 and run["memory_mib"] > 50
    assert not rows["broken"]["runs"] and "seed 0 failed" in rows["broken"]["notes"][0]
    assert (rows["standard"]["passes"]["cost"], rows["madry"]["passes"]["cost"]) == (3, 6)
    assert "failed" in (out / "comparison.md").read_text()
    file.write_text(text.replace("epochs: 2", "epochs: 3"))
    other = command(file, "--output", out)
    assert "epochs was 2 and is 3" in other.communicate(timeout=60)[0] and other.returncode == 2


@pytest.mark.parametrize(
    "change, forward, backward",
    [
        # Three attack steps are a forward and a backward pass each, and training passes the adversarial images.
        (dict(method=MadryConfig()), 4, 4),
        (dict(method=MadryConfig(), awp=AWPConfig(gamma=0.01)), 5, 5),  # + the gradient of the weights' perturbation
        (dict(method=TRADESConfig()), 6, 5),  # + the clean images, and once the attack's clean prediction
        (dict(method=ARATConfig()), 5, 5),  # the clean images and the adversarial ones
        (dict(method=ARATConfig(), analysis=AnalysisConfig(every=1)), 5, 5),  # what it measures is no part of a step
        # Half of the epochs without the perturbation, and 1 and 3 attack steps: the mean over epochs.
        (dict(method=MadryConfig(), awp=AWPConfig(gamma=0.01, start_epoch=1)), 4.5, 4.5),
        (dict(method=MadryConfig(), attack=PGD(eps=0.1, steps=3, progressive_epochs=1)), 3, 3),
    ],
    ids=["PGD-AT", "AT-AWP", "TRADES", "ARAT", "analysis", "AWP from the second epoch", "progressive"],
)
@pytest.mark.usefixtures("fresh_accelerate")
def test_passes_are_those_counted_by_hand(change, forward, backward, tmp_path):
    from timm_arat.data import load as load_data
    from timm_arat.engine.forecast import forecast

    config = tiny(tmp_path, **{"attack": PGD(eps=0.1, steps=3), **change})
    found = forecast(config, load_data(DATA, input_size=(1, 8, 8)))
    assert (found.passes.forward, found.passes.backward) == (forward, backward)
    assert found.passes.cost == forward + 2 * backward and found.training > 0


def test_a_row_stands_on_its_recipe_under_the_protocol(file):
    text = file.read_text().replace("seeds:", "  fast: {settings: {attack: {eps: 0.05}}}\nseeds:")
    file.write_text(text)
    runs = runs_of(read_comparison([str(file), "--settings.epochs", "7"]))
    assert [run.name for run in runs] == ["standard-0", "madry-0", "fast-0", "standard-1", "madry-1", "fast-1"]
    assert {(run.config.epochs, run.config.evaluation.eps, run.config.twin) for run in runs} == {(7, 0.15, None)}
    assert runs[2].config.attack.eps == 0.05 and runs[2].config.method == ARATConfig(weight=10)


def test_a_teacher_whose_network_is_not_here_is_trained_again_for_a_row_that_needs_it(file, tmp_path, monkeypatch):
    text = file.read_text()
    after = "  hat: {settings: {method: {name: hat}}, after: standard}\nseeds:"
    file.write_text(text.replace("seeds:", after))
    runs = runs_of(read_comparison([str(file), "--output", str(tmp_path), "--seeds", "[0]"]))
    standard, madry, hat = runs
    for run in (standard, madry):  # as git has them: measured, without weights
        run.folder.mkdir()
        for name in ("results.json", "results_last.json"):
            (run.folder / name).write_text("{}")
    assert to_do(runs) == [standard, hat]
    (standard.folder / "model").mkdir()
    assert to_do(runs) == [hat]
    hat.folder.mkdir()
    for name in ("results.json", "results_last.json"):
        (hat.folder / name).write_text("{}")
    (standard.folder / "model").rmdir()
    assert to_do(runs) == []
    # Begun anew, it is not finished by what the former training measured.
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: None)
    (standard.folder / "summary.jsonl").write_text("{}")
    _start(standard, 1)
    assert not finished(standard) and not (standard.folder / "summary.jsonl").exists()
    for name in ("results.json", "results_last.json"):
        (standard.folder / name).write_text("{}")
    # A teacher that itself had one.
    pupil = replace(hat, row="pupil", after=(hat.name,), config=replace(hat.config, output=str(tmp_path / "pupil-0")))
    assert to_do([*runs, pupil]) == [standard, hat, pupil]


def test_a_row_begins_with_what_another_one_trained(file, tmp_path):
    text = file.read_text()
    rows = (
        "  robust: {settings: {method: {name: madry}}, start: standard}\n"
        "  both: {settings: {method: {name: hat}}, after: robust, start: standard}\nseeds:"
    )
    file.write_text(text.replace("seeds:", rows))
    runs = {run.name: run for run in runs_of(read_comparison([str(file), "--output", str(tmp_path)]))}
    robust, both = runs["robust-1"], runs["both-1"]
    first = ModelConfig(name=f"{tmp_path}/standard-1", pretrained=True)
    assert (robust.config.model, robust.config.teacher.name, robust.after) == (first, "", ("standard-1",))
    assert (both.config.model, both.after) == (first, ("robust-1", "standard-1"))
    assert both.config.teacher == ModelConfig(name=f"{tmp_path}/robust-1", pretrained=True)
    # Its cost is measured before there is such a network.
    plain = ModelConfig(name=runs["standard-1"].config.model.name)
    alone = _stand_alone(both, plain)
    assert (alone.model, alone.teacher) == (plain, plain)
    assert _stand_alone(runs["madry-1"], plain) == runs["madry-1"].config


@pytest.mark.parametrize(
    "old, new, wanted",
    [
        ("{name: madry}", "{name: madri}", "rows.madry: .*did you mean 'madry'"),
        (
            "{name: madry}}",
            "{name: madry}, optimizer: {lrr: 1}}",
            "rows.madry: [^ ]*/[^ /]*.yaml: settings: optimizer.lrr",
        ),
        ("{name: madry}}", "{name: madry}, epochs: 3}", "rows.madry.settings.epochs: the protocol has it"),
        ("val_size: 100", "val_size: 0", "held-out training images"),
        ("{name: madry}}", "{name: madry}, data: {hflip: 0.1}}", "rows.madry.settings.data.hflip: the protocol has it"),
        ("standard: {", "standard: {after: madry, ", "rows.standard.after: 'madry' is no row above it"),
        ("standard: {", "standard: {start: standard, ", "rows.standard.start: 'standard' is no row above it"),
        ("standard: {", "standard: {recepe: x, ", "rows.standard.recepe: no such option; did you mean 'recipe'"),
        ("standard: {", "standard: {recipe: 3, ", "rows.standard.recipe is 3: wanted a name"),
        ("standard: {", "standard: {after: [x], ", "rows.standard.after is \\['x'\\]: wanted a name"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "none twice"),
        ("seeds:", "reference: madri\nseeds:", "did you mean 'madry'"),
    ],
)
def test_a_mistake_in_a_comparison_is_answered_with_the_way_out(file, old, new, wanted):
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=wanted):
        runs_of(read_comparison([str(file)]))


def test_processor_seconds_end_with_the_last_step_of_an_epoch(tmp_path):
    cost = Cost(session_of(tiny(tmp_path)))
    cost.begin(0, resumed=False)
    while time.process_time() - cost.started < 0.05:
        pass
    cost.after_update(1, 0)
    taken = cost.row()["processor_seconds"]
    assert taken >= 0.05
    while time.process_time() - cost.started < 0.1:  # as an analysis does
        pass
    assert cost.row()["processor_seconds"] == taken == cost.state_dict()["seconds"]


def test_what_is_of_the_machine_makes_no_other_protocol(file, tmp_path):
    (run, *_) = runs_of(read_comparison([str(file), "--output", str(tmp_path)]))
    run.folder.mkdir()
    data = replace(run.config.data, root="elsewhere", workers=3, cache="never")
    moved = replace(run.config, data=data, threads=7, log_every=3, checkpoint_minutes=1.0)
    (run.folder / "config.yaml").write_text(dump(replace(moved, output=None), variants=VARIANTS))
    check_settings([run])
    (run.folder / "config.yaml").write_text(dump(replace(moved, output=None, seed=5), variants=VARIANTS))
    with pytest.raises(ValueError, match="seed was 5 and is 0"):
        check_settings([run])
    data = replace(data, name="folder", in_chans=3)
    (run.folder / "config.yaml").write_text(dump(replace(run.config, data=data, output=None), variants=VARIANTS))
    here = replace(run, config=replace(run.config, data=replace(data, root="others")))
    with pytest.raises(ValueError, match="data.root was 'elsewhere' and is 'others'"):
        check_settings([here])


def test_a_row_that_cannot_be_trained_is_named_before_any_is(file, tmp_path):
    file.write_text(file.read_text().replace("{name: standard}}", "{name: standard}, warm_start: true}"))
    done = command(file, "--output", tmp_path / "out")
    said = done.communicate(timeout=240)[0]
    assert done.returncode == 2 and "rows.standard: warm_start: standard has no attack to start" in said, said
    assert "begins" not in said


@pytest.mark.parametrize("name", comparisons())
def test_every_bundled_comparison_is_of_runs_that_can_be_read(name):
    runs = runs_of(read_comparison([name, "--seeds", "[0]"]))
    assert {run.config.evaluation.eps for run in runs} == {8 / 255}
    for run in runs:
        for kind in COMPANIONS:
            kind.check(run.config)
    begin_alike = [run for run in runs if not run.config.model.pretrained]
    assert len({repr(replace(run.config.model, init="timm")) for run in begin_alike}) <= 1
    rows = {
        "compare_official": 10,
        "compare_time": 4,
        "compare_convnext": 5,
        "compare_imagenette": 13,
        "compare_methods": 22,
        "compare_search": 25,
    }
    assert len(runs) == rows.get(name, 19)
    if name == "compare_official":
        last = runs[-1].config
        assert (last.model.init, last.data.drop_last) == ("torch", False)
        assert {(run.config.model.init, run.config.data.drop_last) for run in runs[:1]} == {("timm", True)}
    if name == "compare_time":
        assert [run.config.attack.steps for run in runs] == [10, 3, 1, 1]
    for hat in (run for run in runs if run.row == "hat"):
        assert hat.config.teacher.name.endswith("standard-0") and hat.after == ("standard-0",)


def outcomes(name: str) -> Outcome:
    return Outcome(0, Robustness.load(RESULTS / f"{name}.results.json"), 2.0, 3.0, 400.0)


def test_the_table_is_that_of_the_stored_results():
    arat, plain = outcomes("digits-arat"), outcomes("digits-standard")
    twice = (replace(arat, held_out=110.0), replace(arat, seed=1, result=plain.result, minutes=4.0, held_out=130.0))
    lines = [
        Line("plain", (plain,), Passes(1, 1)),
        Line("arat", twice, Passes(5, 5)),
        Line("lost", (), None, ("gone",)),
    ]
    paired = against(lines[1], lines[0])
    assert paired == {0: compare(arat.result, plain.result)}  # the reference has no seed 1
    table = {
        cells[1].strip(): cells for line in markdown(lines, "plain").splitlines() if (cells := line.split("|"))[1:]
    }
    low, high = 100 * arat.result.clean.accuracy, 100 * plain.result.clean.accuracy
    assert (
        f"{(low + high) / 2:.1f} ± {abs(low - high) / 2**0.5:.1f} (n={arat.result.clean.n}, 2 seeds)"
        in table["arat"][2]
    )
    assert "5 + 5 (15)" in table["arat"][7] and "p = " in table["arat"][-2] and table["lost"][2].strip() == "-"
    assert "lost: gone." in markdown(lines, "plain")
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(as_csv(lines)))}
    assert float(rows["arat"]["minutes_mean"]) == 3 and float(rows["arat"]["minutes_sd"]) == pytest.approx(2**0.5)
    assert [table[name][6].strip() for name in ("plain", "arat")] == ["-", "120.0 ± 14.1"]
    stored = json.loads(as_json(lines, "plain", {}))["rows"][1]["runs"][0]
    assert stored["against_reference"]["pgd"]["p_value"] == paired[0]["pgd"].p_value


def test_held_out_accuracy_is_of_the_epoch_that_was_chosen(tmp_path):
    stored = DOCS / "comparison" / "methods" / "arat-0"
    rows = [json.loads(line) for line in (stored / "summary.jsonl").read_text().splitlines()]
    for name in ("results.json", "summary.jsonl"):
        (tmp_path / name).write_text((stored / name).read_text())
    config = (stored / "config.yaml").read_text()
    for select in ("sum", "clean"):
        (tmp_path / "config.yaml").write_text(config.replace("select: sum", f"select: {select}"))
        chosen = next(row for row in rows if row["epoch"] == best_epoch(rows, select))
        found = Outcome.load(tmp_path, 0).held_out
        assert found == 100 * (chosen["val_clean"] + chosen["val_robust"]) > 50


def test_without_autoattack_the_strongest_attack_is_pgd_and_the_columns_say_so():
    arat, plain = (
        replace(each, result=replace(each.result, scores={k: each.result.scores[k] for k in ("clean", "pgd")}))
        for each in map(outcomes, ("digits-arat", "digits-standard"))
    )
    lines = [Line("plain", (plain,)), Line("arat", (arat,))]
    head, _, first, second = (row.strip("| ").split(" | ") for row in markdown(lines, "plain").splitlines()[:4])
    assert head[:4] == ["row", "clean", "PGD-20", "clean + PGD-20"]
    assert head[-2:] == ["clean less plain", "PGD-20 less plain"]
    total = 100 * arat.result.clean.accuracy + 100 * arat.result.pgd.accuracy
    assert second[3] == f"{total:.1f}"
    pair = compare(arat.result, plain.result)["pgd"]
    assert second[-1] == f"{100 * pair.difference:+.1f} (p = {pair.p_value:.2g})" and first[-1] == "-"
    assert f",{total}," in as_csv(lines)


def test_without_an_attack_on_the_test_images_there_is_no_column_of_one(tmp_path):
    pytest.importorskip("matplotlib")
    rows = tuple(
        {"seconds": 30.0, "processor_seconds": 60.0, "val_clean": 0.5, "val_robust": robust} for robust in (0.1, 0.2)
    )
    lines = []
    for name in ("digits-standard", "digits-arat"):
        whole = outcomes(name)
        clean = replace(whole.result, scores={"clean": whole.result.clean})
        lines.append(Line(name, (replace(whole, result=clean, held_out=70.0, rows=rows),)))
    head = markdown(lines, "digits-standard").splitlines()[0].strip("| ").split(" | ")
    assert head[:4] == ["row", "clean", "held-out sum", "passes an image"] and head[-1] == "clean less digits-standard"
    assert all(len(row.split("|")) == len(head) + 2 for row in markdown(lines, "digits-standard").splitlines()[1:4])
    (row, _) = csv.DictReader(io.StringIO(as_csv(lines)))
    assert row["sum_mean"] == row["pgd_mean"] == "" and float(row["held_out_mean"]) == 70
    assert [picture.name for picture in plot(lines, tmp_path)] == ["held_out.png"]


@pytest.mark.parametrize("folder", sorted((DOCS / "comparison").iterdir()), ids=lambda folder: folder.name)
def test_a_table_in_the_documents_is_that_of_the_results_beside_it(folder):
    found = json.loads((folder / "comparison.json").read_text())
    lines = [
        Line(
            row["row"],
            tuple(Outcome.load(folder / f"{row['row']}-{run['seed']}", run["seed"]) for run in row["runs"]),
            Passes(row["passes"]["forward"], row["passes"]["backward"]),
            tuple(row["notes"]),
        )
        for row in found["rows"]
    ]
    table = markdown(lines, found["reference"])
    assert table == (folder / "comparison.md").read_text()
    assert table in (DOCS / "comparison.md").read_text()


def test_time_to_a_level_is_that_of_the_first_epoch_that_has_it():
    epochs = ((0.3, 0.1), (0.4, 0.25), (0.3, 0.2))
    rows = [{"processor_seconds": 60.0, "val_clean": clean, "val_robust": robust} for clean, robust in epochs]
    fast = progress.curve(rows, "processor_seconds")
    assert [(minutes, round(total, 6)) for minutes, total in fast] == [(1, 40), (2, 65), (3, 50)]
    assert progress.until(fast, 50) == 2 and progress.until(fast, 70) is None
    assert progress.curve(rows, "seconds") == () == progress.curve([{"processor_seconds": 1.0}], "processor_seconds")
    slow = tuple((4 * minutes, total) for minutes, total in fast)
    curves = {"slow": [slow], "fast": [fast], "weak": [fast[:1]], "two": [fast, fast[:1]]}
    text = "\n".join(progress.markdown(curves, "slow", "processor minutes"))
    assert "| row | until 40 | until 50 | until 60 |" in text
    assert "| fast | 1.0 (4.0x) | 2.0 (4.0x) | 2.0 (4.0x) |" in text
    assert "| weak | 1.0 (4.0x) | - | - |" in text and "| two | 1.0 (4.0x) | - | - |" in text
    assert progress.markdown(curves, "of no run", "minutes") == []


def test_the_frontier_has_what_nothing_beats_in_both():
    assert frontier([(1, 5), (2, 4), (1.5, 4), (3, 1), (2, 3), (0, 5)]) == [(1, 5), (2, 4), (3, 1)]


def test_a_picture_names_every_row_whatever_it_is_called(tmp_path, monkeypatch):
    named = []

    def look(figure, path, **options):
        named.append([text.get_text().strip() for text in figure.legends[0].get_texts()])

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    names = ["_mine", *(f"row-{number}" for number in range(11))]
    plot([Line(name, (outcomes("digits-arat"),)) for name in names], tmp_path)
    assert named == [["frontier", *names], names]


def test_no_prediction_is_none(tmp_path):
    assert load(tmp_path) == {}
