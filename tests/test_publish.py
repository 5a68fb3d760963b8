"""A finished run to the Hub and back, by the commands, the real client and real HTTP; the server is hub_server.py."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

import timm_arat
from timm_arat.data import DataConfig
from timm_arat.evaluation._autoattack import MARGIN, describe
from timm_arat.evaluation._model import open_model
from timm_arat.evaluation._place import beside
from timm_arat.hub import _assemble
from timm_arat.hub.__main__ import main
from timm_arat.hub._again import renew
from timm_arat.hub._assemble import check_run
from timm_arat.hub._card import render
from timm_arat.hub._cost import before
from timm_arat.hub._files import TWIN, files
from timm_arat.hub._publish import check
from timm_arat.norm import norm_branch

ROOT = Path(__file__).parents[1]
REPO = "tester/resnet20_cifar_arat.digits_linf38"
DATASET = ["--dataset_name", "Digits", "--dataset_id", "tester/digits"]


def python(*command: Any, **env: str) -> subprocess.CompletedProcess:
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=clean | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def said(done: subprocess.CompletedProcess) -> str:
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One epoch on the digits, evaluated."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = python(
        *("recipes/train.py", "--output", folder, "--epochs", 1, "--twin", "null", "--threads", 1),
        *("--evaluation.autoattack_images", 10, "--evaluation.pgd_images", 20),
        *("--model.kwargs", '{"layers": [1, 1], "channels": [8, 16]}'),
    )
    assert done.returncode == 0, said(done)
    return folder


@pytest.fixture(scope="module")
def assembled(run, tmp_path_factory) -> Path:
    cards = tmp_path_factory.mktemp("cards")
    options = ("--repo-id", REPO, "--cards", cards, "--images", 20, "--twin", run, "--dry-run", *DATASET)
    done = python("recipes/publish.py", run, *options)
    assert done.returncode == 0 and "nothing was sent" in done.stdout, said(done)
    return cards / REPO.partition("/")[2]


@pytest.fixture
def folder(assembled, tmp_path) -> Path:
    return Path(shutil.copytree(assembled, tmp_path / "cards" / assembled.name))


@pytest.fixture
def env(hub) -> dict[str, str]:
    return {key: value for key, value in hub.env.items() if key not in os.environ or key.startswith("HF_")}


def publish(folder: Path, env: dict[str, str], *options: Any) -> subprocess.CompletedProcess:
    done = python("recipes/publish.py", folder, *options, **env)
    assert env["HF_TOKEN"] not in said(done), "a token is never printed"
    return done


def logits(model: torch.nn.Module) -> torch.Tensor:
    x = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x)


LOAD = """
import sys, timm, timm_arat, torch
x = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    models = [eval(way).eval() for way in sys.argv[2:]]
    torch.save([(model(x), model.state_dict()) for model in models], sys.argv[1])
"""


def test_the_whole_way_and_back(run, folder, hub, env, tmp_path):
    done = publish(folder, env)
    assert done.returncode == 0, said(done)
    assert f"v1: timm.create_model('hf-hub:{REPO}@v1', pretrained=True)" in done.stdout
    record = json.loads((folder / "hub.json").read_text())
    assert record["repo_id"] == REPO and record["tag"] == "v1" and record["url"].startswith(hub.server.endpoint)

    expected = logits(timm.create_model(f"local-dir:{run / 'model'}", pretrained=True))
    by_name = (
        "timm.create_model('resnet20_cifar_arat', pretrained=True, layers=(1, 1), channels=(8, 16), in_chans=1, "
        f"pretrained_cfg_overlay=dict(hf_hub_id='{REPO}@{record['revision']}', input_size=(1, 8, 8)))"
    )
    both = by_name.replace("pretrained=True", "pretrained=True, split_norm=True", 1)
    ways = [*(f"timm.create_model('hf-hub:{REPO}{at}', pretrained=True)" for at in ("", "@v1")), by_name, both]
    trained = load_file(run / "weights" / "best.safetensors")
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):  # offline: all of it is in the cache by then
        done = python("-c", LOAD, tmp_path / "loaded.pt", *ways, **env | offline)
        assert done.returncode == 0, said(done)
        *plain, (_, split) = torch.load(tmp_path / "loaded.pt")
        for way, (found, _) in zip(ways, plain, strict=False):
            assert torch.equal(found, expected), way
        assert split.keys() == trained.keys() and all(torch.equal(split[key], trained[key]) for key in trained)


def test_the_repository_holds_the_folder_and_its_card_is_valid(folder, env, tmp_path):
    assert publish(folder, env, "--private", "true").returncode == 0
    code = f"""
import json, sys
from huggingface_hub import HfApi, ModelCard
api = HfApi()
card = ModelCard.load("{REPO}")
card.validate()
info = api.model_info("{REPO}")
print(json.dumps({{
    "files": api.list_repo_files("{REPO}"), "private": info.private, "library": card.data.library_name,
    "tags": card.data.tags, "pipeline": card.data.pipeline_tag, "license": card.data.license,
    "index": [[e.metric_name, e.metric_value, e.metric_args["n_examples"]] for e in card.data.eval_results],
}}))
"""
    done = python("-c", code, **env)
    assert done.returncode == 0, said(done)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["files"]) - {".gitattributes"} == set(files(folder))
    assert found["private"] and found["library"] == "timm" and found["pipeline"] == "image-classification"
    assert found["license"] == "apache-2.0" and "adversarial-robustness" in found["tags"]
    results = timm_arat.Robustness.load(folder / "results.json")
    assert [row[1:] for row in found["index"]] == [
        [round(score.accuracy, 4), score.n] for score in (results.clean, results.pgd, results.autoattack)
    ]
    entries = yaml.safe_load((folder / ".eval_results" / "timm_arat.yaml").read_text())
    assert entries[0]["value"] == pytest.approx(100 * results.clean.accuracy, abs=0.01)


def test_the_cards_usage_runs(folder, env):
    assert publish(folder, env).returncode == 0
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    done = python("-c", f"{code}\nprint(tuple(logits.shape))", **env)
    assert done.stdout.strip() == "(1, 10)", said(done)


def test_a_second_call_changes_nothing_and_a_change_is_the_next_version(folder, hub, env):
    assert publish(folder, env).returncode == 0
    first = json.loads((folder / "hub.json").read_text())
    uploads = sum(method == "PUT" for method, _ in hub.server.requests)
    done = publish(folder, env)
    assert done.returncode == 0 and json.loads((folder / "hub.json").read_text()) | {"url": ""} == first | {"url": ""}
    assert publish(folder, env, "--tag", "v1").returncode == 0, "it is the tag of just this"
    assert sum(method == "PUT" for method, _ in hub.server.requests) == uploads, "the weights were sent again"

    with (folder / "training.yaml").open("a") as file:
        file.write("# a remark\n")
    commits = sum("/commit/" in path for _, path in hub.server.requests)
    done = publish(folder, env, "--tag", "v1")
    assert done.returncode and "has a tag v1 on another commit: give another one" in said(done)
    assert sum("/commit/" in path for _, path in hub.server.requests) == commits > 0, "refused before it was sent"
    assert json.loads((folder / "hub.json").read_text())["revision"] == first["revision"]
    assert publish(folder, env).returncode == 0
    second = json.loads((folder / "hub.json").read_text())
    assert second["tag"] == "v2" and second["revision"] != first["revision"]
    code = f"""
from huggingface_hub import hf_hub_download
old, new = (open(hf_hub_download("{REPO}", "training.yaml", revision=r)).read() for r in ("v1", "v2"))
assert "remark" in new and "remark" not in old
"""
    done = python("-c", code, **env)
    assert done.returncode == 0, said(done)


def test_a_pull_request_leaves_the_main_branch(folder, env):
    assert publish(folder, env).returncode == 0
    before = (folder / "hub.json").read_text()
    with (folder / "training.yaml").open("a") as file:
        file.write("# a remark\n")
    done = publish(folder, env, "--create_pr", "true")
    assert done.returncode == 0 and "/discussions/1" in done.stdout, said(done)
    assert (folder / "hub.json").read_text() == before, "it is not published yet"
    code = f"from huggingface_hub import HfApi; print(HfApi().model_info('{REPO}').sha)"
    assert python("-c", code, **env).stdout.strip() == json.loads(before)["revision"]


def last_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode != 0 and "Traceback" not in done.stderr, said(done)
    return done.stderr.strip().splitlines()[-1]


def test_an_upload_that_fails_leaves_nothing_half_and_goes_on(folder, hub, env):
    hub.server.fail("POST", r"/commit/", status=400)
    done = publish(folder, env)
    assert "the same command goes on" in last_line(done)
    assert "revision" not in json.loads((folder / "hub.json").read_text())
    uploads = sum(method == "PUT" for method, _ in hub.server.requests)
    assert uploads >= 2, "model and auxiliary norms"
    assert publish(folder, env).returncode == 0
    assert sum(method == "PUT" for method, _ in hub.server.requests) == uploads, "what had arrived was sent again"


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", "the Hub does not know you: call `hf auth login`"), ("hf_read", "your token may not write")],
)
def test_a_token_that_may_not(folder, env, token, message):
    done = publish(folder, env | {"HF_TOKEN": token})
    assert message in last_line(done)


def test_no_token_at_all(folder, env):
    done = python("recipes/publish.py", folder, **{key: value for key, value in env.items() if key != "HF_TOKEN"})
    assert "hf auth login" in last_line(done)


def test_a_full_hub(folder, hub, env):
    hub.server.store.quota = 1000
    done = publish(folder, env)
    assert "was not published" in last_line(done) and "507" in last_line(done)
    assert "revision" not in json.loads((folder / "hub.json").read_text())


def test_of_two_publishers_the_second_is_told(folder, env):
    """Another commit lands between our look at the repository and ours."""
    code = f"""
from huggingface_hub import HfApi
from timm_arat.hub import _publish
look = _publish._operations
def meanwhile(api, folder, card, repo_id, head):
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="theirs.txt", repo_id=repo_id)
    return look(api, folder, card, repo_id, head)
_publish._operations = meanwhile
try:
    _publish.publish("{folder}")
except OSError as error:
    print(error)
print(HfApi().list_repo_files("{REPO}"))
"""
    done = python("-c", code, **env)
    assert f"somebody changed {REPO} meanwhile" in done.stdout, said(done)
    assert "theirs.txt" in done.stdout and "config.json" not in done.stdout
    assert publish(folder, env).returncode == 0


def test_another_repository_gets_another_card(folder, env):
    assert publish(folder, env, "--repo-id", "tester/other").returncode == 0
    assert "hf-hub:tester/other" in (folder / "README.md").read_text()


# What must not be published, without a server.


def test_what_was_not_evaluated_is_refused(run, folder, tmp_path):
    (folder / "results.json").unlink()
    with pytest.raises((ValueError, OSError), match="results.json"):
        check(folder)
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    (unfinished / "results.json").unlink()
    with pytest.raises(ValueError, match="was not evaluated.*only a finished, evaluated run can be published"):
        check_run(unfinished)


def test_results_without_autoattack_are_refused(folder):
    results = json.loads((folder / "results.json").read_text())
    del results["autoattack"]
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="holds no AutoAttack result"):
        check(folder)


def test_a_card_written_by_hand_is_refused(folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("| clean | ", "| clean | 9"))
    with pytest.raises(ValueError, match="numbers are never written by hand"):
        check(folder)


def test_results_of_other_weights_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["fc.bias"] += 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="is of other weights"):
        check(folder)


def test_an_exported_model_that_is_not_the_trained_one_is_refused(run, tmp_path):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    weights = load_file(run / "weights" / "best.safetensors")
    weights["fc.bias"] += 1
    save_file(weights, run / "weights" / "best.safetensors")
    with pytest.raises(ValueError, match="differ from those of the trained weights"):
        check_run(run)


def test_the_card_says_what_the_json_says(folder):
    text, results = (folder / "README.md").read_text(), timm_arat.Robustness.load(folder / "results.json")
    for score in (results.clean, results.pgd, results.autoattack):
        assert f"{100 * score.accuracy:.1f}" in text and f"| {score.n} |" in text
    curves = json.loads((folder / "curves.json").read_text())
    assert [point["mix"] for point in curves["mix"]] == [0, 0.25, 0.5, 0.75, 1]
    measured = [*curves["eps"], *(point["result"] for point in curves["mix"])]
    assert {(point["fast"], point["batch_size"]) for point in measured} == {(results.fast, results.batch_size)}
    assert "The dial between clean and robust accuracy" in text and (folder / "mix.png").stat().st_size > 5000
    assert str(folder.parent) not in text
    # Its own twin: the same numbers twice, and no difference.
    assert f"| clean (n=20) | {100 * results.clean.accuracy:.1f} | {100 * results.clean.accuracy:.1f} | +0.0%" in text
    assert re.search(r"1 epoch, seed 0, \d+ seconds, 0.0 core hours\.", text)
    assert "![Accuracy on held-out images by epoch](training.png)" in text
    assert (folder / "training.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "source, base_model",
    [
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("hf-hub:someone/robust@v2", "someone/robust"),
        ("resnet20_cifar_arat.cifar10_linf8", None),
        ("my-run", None),
        ("resnet18.my-run", None),  # a folder, whose name looks like timm's
    ],
)
def test_the_card_says_whose_weights_went_into_it(source, base_model, folder):
    config = json.loads((folder / "config.json").read_text())
    config["training"] |= {"started_from": source, "teacher": "clean|net"}
    (folder / "config.json").write_text(json.dumps(config))
    text = render(folder, REPO)["README.md"]
    assert f"It started from the weights of {source}. Its teacher was clean\\|net." in " ".join(text.split())
    config["training"]["before"] = {"epochs": 12, "seconds": 600.0}
    (folder / "config.json").write_text(json.dumps(config))
    text = render(folder, REPO)["README.md"]
    assert f"of {source}, which took 12 epochs, 10 minutes. Its teacher" in " ".join(text.split())
    assert yaml.safe_load(text.split("---")[1]).get("base_model") == base_model


def test_what_came_before_a_run_counts_from_the_first_weights_on(tmp_path):
    def run(name: str, start: str | None, *seconds: float) -> dict[str, Any]:
        (tmp_path / name / "model").mkdir(parents=True)
        training = {"started_from": str(tmp_path / start)} if start else {}
        (tmp_path / name / "model" / "config.json").write_text(
            json.dumps({"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {}, "training": training})
        )
        rows = [{"epoch": epoch, "seconds": taken} for epoch, taken in enumerate(seconds)]
        rows.insert(1, {"epoch": 0, "seconds": seconds[0]})  # trained again after a crash
        (tmp_path / name / "summary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return training

    assert before(run("clean", None, 10, 20)) is None
    assert before(run("robust", "clean", 100)) == {"epochs": 2, "seconds": 30}
    assert before(run("continued", "robust", 1)) == {"epochs": 3, "seconds": 130}
    assert before({"started_from": "resnet18.a1_in1k"}) is None
    file = tmp_path / "robust" / "model" / "config.json"  # as published, and continued where no earlier run is
    config = json.loads(file.read_text())
    config["training"] |= {"started_from": "gone", "before": {"epochs": 7, "seconds": 70.0}}
    file.write_text(json.dumps(config))
    assert before({"started_from": str(tmp_path / "robust")}) == {"epochs": 8, "seconds": 170.0}


def test_the_card_calls_no_other_autoattack_the_standard_one(folder):
    said = "AutoAttack is the official standard version (BatchNorms folded); its number bounds robust"
    assert said in (folder / "README.md").read_text()
    results = timm_arat.Robustness.load(folder / "results.json")
    for classes, fast, said in (
        (10, False, "AutoAttack is the official standard version; its"),
        (4, True, "AutoAttack is the official standard version (3 targets, BatchNorms folded); its"),
        (3, True, f"AutoAttack is {MARGIN}, 2 targets, BatchNorms folded; its"),
    ):
        attacks = {**results.attacks, "autoattack": describe(classes, ["linf"]) + ", BatchNorms folded" * fast}
        replace(results, attacks=attacks).save(folder / "results.json")
        assert said in render(folder, REPO)["README.md"]


def test_a_twin_is_of_the_same_backbone_and_measured_on_the_same_images(run, folder, monkeypatch):
    results = timm_arat.Robustness.load(run / "results.json")
    (folder / TWIN).unlink()
    without = replace(results, scores={name: results.scores[name] for name in ("clean", "fgsm", "pgd", "unbounded")})
    monkeypatch.setattr(_assemble, "check_run", lambda twin: without)
    with pytest.raises(ValueError, match="shares no AutoAttack result with this model"):
        _assemble.write_twin(run, folder, results)
    config = json.loads((folder / "config.json").read_text()) | {"architecture": "resnet18"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is of resnet20_cifar and this model resnet18: a twin has the same backbone"):
        _assemble.write_twin(run, folder, results)
    assert not (folder / TWIN).exists()


def test_an_assembled_folder_takes_more_images_and_a_twin_and_nothing_that_belongs_to_a_run(
    run, folder, tmp_path, monkeypatch, capsys
):
    results = timm_arat.Robustness.load(folder / "results.json")
    # As it would be had it been assembled without a twin and then published.
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("twin")["epochs"] == 1
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / TWIN).unlink()
    (folder / "README.md").write_text(render(folder, REPO)["README.md"])
    assert "Beside its twin" not in (folder / "README.md").read_text()
    (folder / "own.txt").write_text("mine")

    more = tmp_path / "more.json"
    settings = {"autoattack_images": 12, "pgd_images": 24, "fast": True, "eps": results.eps, "batch_size": 24}
    timm_arat.evaluate(f"local-dir:{folder}", DataConfig("digits"), progress=False, **settings).save(more)
    done = python("recipes/publish.py", folder, "--results", more, "--images", 24, "--twin", run, "--dry-run")
    assert done.returncode == 0 and "nothing was sent" in done.stdout, said(done)

    card, results = (folder / "README.md").read_text(), timm_arat.Robustness.load(folder / "results.json")
    assert (results.clean.n, results.autoattack.n) == (24, 12)
    assert "| clean | " in card and "| 24 |" in card and "| clean (n=20) |" in card, "the twin has 20 of the images"
    assert "Its training: 1 epoch, seed 0, " in card and str(tmp_path) not in card
    twin = timm_arat.Robustness.load(folder / TWIN)
    ours, theirs = results.clean.by_index(), twin.clean.by_index()
    shares = (100 * sum(each[index] for index in theirs) / 20 for each in (ours, theirs))
    assert "| clean (n=20) | {:.1f} | {:.1f} |".format(*shares) in card, "both of the images that they share"
    point = json.loads((folder / "curves.json").read_text())["eps"][2]
    assert timm_arat.Robustness.from_json(point).pgd == results.pgd, "the curve is of the same images"
    assert (folder / "own.txt").read_text() == "mine"

    assert beside(str(folder), "results.json") == Path(f"{folder.name}.results.json"), (
        "not over what the card speaks of"
    )
    assert beside(str(run), "results.json") == run / "results.json"
    assert open_model(folder)[1] == folder.name
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    replace(results, weights="0" * 32).save(more)
    with pytest.raises(ValueError, match="of other weights than those in"):
        renew(folder, results=more)
    for words, wanted in (
        ("--mix 0.5 --name other.name", "--name, --mix: for a run, and "),
        ("--images 5", "--images: nothing is measured of "),
        (f"--images 5 --twin {run}", "--images: nothing is measured of "),
        ("--repo_id org/", "--repo_id org/: the Hub takes no such name"),
        ("--repo_id org", "--repo_id org: wanted ORG/NAME"),
        ("--tag v3 --create_pr true", "--tag: a pull request has no version yet"),
    ):
        monkeypatch.setattr("sys.argv", ["publish.py", str(folder), *words.split()])
        with pytest.raises(SystemExit):
            main()
        assert wanted in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_mix_is_another_model_and_is_measured_as_such(run, tmp_path):
    done = python(
        *("recipes/publish.py", run, "--repo-id", "tester/mixed", "--cards", tmp_path, "--images", 10, "--mix", 0.5),
        *("--dry-run", *DATASET),
    )
    assert done.returncode == 0, said(done)
    mixed = tmp_path / "mixed"
    weights, plain = (load_file(path / "model.safetensors") for path in (mixed, run / "model"))
    aux = load_file(mixed / "aux_norm.safetensors")
    torch.testing.assert_close(weights["bn1.weight"], (plain["bn1.weight"] + aux["bn1.aux_bn.0.weight"]) / 2)
    assert torch.equal(weights["conv1.weight"], plain["conv1.weight"])
    before, after = (json.loads((path / "results.json").read_text())["weights"] for path in (run, mixed))
    assert before != after
    card, results = (mixed / "README.md").read_text(), timm_arat.Robustness.load(mixed / "results.json")
    assert "This checkpoint is mix 0.5" in card and results.fast, "with the settings of the run's"
    points = json.loads((mixed / "curves.json").read_text())["mix"]
    assert [point["mix"] for point in points] == [0.5, 0.75, 1.0], "shares of the trained norms, not of the published"
    assert points[0]["result"]["weights"] == results.weights
    ends = timm.create_model(f"local-dir:{mixed}", pretrained=True)
    ends.load_state_dict({**weights, **{key.replace(".aux_bn.0", ""): value for key, value in aux.items()}})
    assert points[-1]["result"]["weights"] == timm_arat.evaluation.fingerprint(timm_arat.in_pixels(ends))
    assert not list(tmp_path.glob(".*")), "the evaluation's journal is of no more use"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 0}, "images=0 is not at least 1: the curves"),
        ({"twin": "nowhere"}, "nowhere"),
        ({"folder": "resnet50_arat.digits_linf38"}, "the run is of resnet20_cifar, and the checkpoint would be called"),
    ],
)
def test_what_cannot_be_assembled_is_refused_before_anything_is_measured(run, tmp_path, monkeypatch, changes, said):
    monkeypatch.setattr(_assemble, "evaluate", lambda *_, **__: pytest.fail("hours of evaluation"))
    folder = tmp_path / changes.pop("folder", "mixed")
    with pytest.raises((ValueError, OSError), match=said):
        _assemble.assemble(run, folder, "tester/mixed", mix=0.5, **changes)
    assert not folder.exists()


def test_a_checkpoint_is_not_replaced_by_one_of_another_architecture(run, folder):
    config = json.loads((folder / "config.json").read_text()) | {"architecture": "resnet18"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is a checkpoint of resnet18, and the run is of resnet20_cifar: give another"):
        _assemble.assemble(run, folder, REPO)


def test_a_dry_run_for_another_repository_writes_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert check(folder, "other/name") == "other/name"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_nothing_known_is_lost_with_the_second_branch(run, folder):
    model = timm_arat.convert_split_norm(timm.create_model(f"local-dir:{folder}", pretrained=True))
    model.load_state_dict(load_file(folder / "model.safetensors") | load_file(folder / "aux_norm.safetensors"))
    with norm_branch(model, "main"):
        expected = logits(timm.create_model(f"local-dir:{run / 'model'}", pretrained=True))
        assert torch.equal(logits(model), expected)


def test_the_network_is_down_or_the_cache_is_cold(tmp_path):
    """Ours says what was looked for and where it may lie; timm's speaks of another file."""
    code = (
        "import timm, timm_arat\n"
        "try:\n"
        "    overlay = dict(hf_hub_id='org/model@v1')\n"
        "    timm.create_model('resnet18_arat', pretrained=True, pretrained_cfg_overlay=overlay)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = python("-c", code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    for part in ("model.safetensors of org/model@v1", str(tmp_path), "HF_HUB_OFFLINE is set", "local-dir:"):
        assert part in done.stdout, said(done)


def test_missing_repositories_and_files_are_named(hub, env, tmp_path):
    code = (
        "import sys, timm, timm_arat\n"
        "from huggingface_hub import HfApi\n"
        "api = HfApi()\n"
        "api.create_repo('tester/pickle')\n"
        "api.upload_file(path_or_fileobj=b'x', path_in_repo='pytorch_model.bin', repo_id='tester/pickle')\n"
        "for hub_id in ('tester/gone', 'tester/pickle', 'tester/pickle@v9'):\n"
        "    try:\n"
        "        timm.create_model('resnet18_arat', pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id=hub_id))\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    lines = python("-c", code, **env).stdout.splitlines()
    assert "tester/gone could not be had" in lines[0] and "check the name" in lines[0]
    assert lines[1].startswith("tester/pickle on ") and lines[1].endswith("holds no model.safetensors")
    assert "tester/pickle@v9" in lines[2]
