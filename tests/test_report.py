"""A document's numbers come from the runs' JSON and nowhere else."""

import json
import shutil

import pytest
import timm
import torch

from benchmarks import report
from timm_arat.evaluation import Robustness, evaluate


@pytest.fixture
def run(tmp_path, measured):
    """The folder of a finished run as the engine leaves it, with made-up numbers."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    measured.save(folder / "results.json")
    rows = [
        {"epoch": epoch, "seconds": 60.0, "loss": 1.0, "val_clean": clean, "val_robust": robust}
        for epoch, clean, robust in ((1, 0.9, 0.1), (2, 0.5, 0.2), (2, 0.7, 0.4), (3, 0.5, 0.5))
    ]
    (folder / "config.yaml").write_text("evaluation: {select: sum}\n")
    (folder / "summary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "model/config.json").write_text(json.dumps({"architecture": "net", "training": {"method": "arat"}}))
    (folder / "command.txt").write_text("recipes/train.py --seed 1\nrecipes/train.py --seed 1 --resume true\n")
    return folder


@pytest.fixture
def measured():
    """A result of 20 images."""
    x, y = torch.rand(20, 3, 8, 8), torch.arange(20) % 10
    model = timm.create_model("resnet20_cifar", num_classes=10, layers=(1, 1), channels=(8, 8)).eval()
    return evaluate(model, (x, y), attacks=("clean", "pgd"), progress=False)


def test_the_block_between_the_marks_is_replaced_and_nothing_else(run, tmp_path, measured, monkeypatch):
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    words = [str(run), "--name", "x", "--into", str(document)]
    monkeypatch.setattr("sys.argv", ["report", *words])
    report.main()
    text = document.read_text()
    assert text.startswith("before\n<!-- x:begin -->") and text.endswith("<!-- x:end -->\nafter\n")
    assert "old" not in text
    assert f"{100 * measured.clean.accuracy:.1f} ± " in text
    assert "best (epoch 2)" in text and "| 3 min |" in text  # the newest row of a repeated epoch
    assert "accelerate launch recipes/train.py --seed 1\n" in text
    assert "accelerate launch recipes/train.py --seed 1 --resume true\n" in text, "it may have changed the settings"
    assert Robustness.load(tmp_path / "results/x-arat.results.json") == measured
    assert (tmp_path / "results/x.png").stat().st_size > 1000
    report.main()
    assert document.read_text() == text


def test_a_document_without_the_marks_is_left_alone(run, tmp_path, monkeypatch, capsys):
    document = tmp_path / "results.md"
    document.write_text("nothing here\n")
    monkeypatch.setattr("sys.argv", ["report", str(run), "--name", "x", "--into", str(document)])
    with pytest.raises(SystemExit):
        report.main()
    assert "<!-- x:begin -->" in capsys.readouterr().err
    assert document.read_text() == "nothing here\n"


def test_runs_of_one_method_are_told_apart_by_their_folders(run, tmp_path, monkeypatch, capsys):
    document = tmp_path / "speed.md"
    document.write_text("<!-- x:begin -->\n<!-- x:end -->\n")
    for name in ("plain", "warm_start", "elsewhere/plain"):
        shutil.copytree(run, tmp_path / name)
    words = [str(tmp_path / "plain"), str(tmp_path / "warm_start"), "--name", "x", "--into", str(document)]
    monkeypatch.setattr("sys.argv", ["report", *words])
    report.main()
    text = document.read_text()
    assert ", plain | best" in text and ", warm_start | best" in text
    assert ", plain less " in text and ", warm_start on the same images" in text
    assert all((tmp_path / f"results/x-{name}.results.json").exists() for name in ("plain", "warm_start"))
    words[1] = str(tmp_path / "elsewhere/plain")
    monkeypatch.setattr("sys.argv", ["report", *words])
    with pytest.raises(SystemExit):
        report.main()
    assert "rename a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "best"),
    [
        ("evaluation: {select: sum}", 2),
        ("evaluation: {select: robust}", 3),
        ("evaluation: {select: clean}", 1),
        ("validation: {select: clean}\nevaluation: {attack: pgd}", 1),
        ("seed: 1", 2),
    ],
)
def test_the_best_epoch_is_the_one_that_training_chose(run, config, best):
    (run / "config.yaml").write_text(f"{config}\n")
    assert f"| best (epoch {best}) |" in "\n".join(report.table([run]))


def test_without_validation_the_last_epoch_is_the_best(run):
    rows = [{"epoch": epoch, "seconds": 60.0, "loss": 1 / epoch} for epoch in (1, 2, 3)]
    (run / "summary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "| best (epoch 3) |" in "\n".join(report.table([run]))
