"""`evaluate` and its command: what it measures, what it leaves alone, what it resumes, what it refuses."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers_evaluation import EPS, digits, short_attacks, trained
from torch import nn
from torch.utils.data import TensorDataset

import timm_arat
from timm_arat.data import DataConfig
from timm_arat.evaluation import Robustness, _evaluate, evaluate, merge
from timm_arat.evaluation.__main__ import main

ALL = ("clean", "pgd", "autoattack")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_evaluate, "standard_attacks", short_attacks)


@pytest.fixture(scope="module")
def whole():
    """The undisturbed result of `run()`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_evaluate, "standard_attacks", short_attacks)
        return timeless(run())


def images(n=40):
    x, y = digits()
    return x[-n:], y[-n:]


def run(net=None, data=None, **options):
    net, data = trained() if net is None else net, images() if data is None else data
    return evaluate(net, data, **({"eps": EPS, "batch_size": 16, "progress": False, "attacks": ALL} | options))


def timeless(result: Robustness) -> Robustness:
    return replace(result, seconds={}, command="")


def test_clean_accuracy_is_the_models_and_attacks_only_lower_it(whole):
    (x, y), result = images(), whole
    assert list(result.clean.correct) == (trained()(x).argmax(1) == y).tolist()
    order = [result.clean, *(result.scores[name] for name in ("apgd-ce", "apgd-t", "fab-t", "square"))]
    assert all(a.accuracy >= b.accuracy for a, b in itertools.pairwise(order))
    assert result.clean.accuracy > result.pgd.accuracy >= result.autoattack.accuracy > 0


def test_nothing_of_the_callers_is_changed():
    net = trained()
    net[1].train()
    net[0].bias.requires_grad_(False)
    x, y = images()
    copies, weights, generator = (
        (x.clone(), y.clone()),
        [w.clone() for w in net.state_dict().values()],
        torch.get_rng_state(),
    )
    try:
        with torch.autocast("cpu", torch.bfloat16):
            run(net, (x, y))
            assert torch.is_autocast_enabled("cpu")
        assert [module.training for module in net] == [i == 1 for i in range(len(net))]
        assert [p.requires_grad for p in net.parameters()] == [i != 1 for i in range(8)]
        assert all(p.grad is None or not p.grad.any() for p in net.parameters())
        assert torch.equal(torch.get_rng_state(), generator)
        assert torch.equal(x, copies[0]) and torch.equal(y, copies[1])
        assert all(map(torch.equal, weights, net.state_dict().values()))
    finally:
        net.eval()
        net[0].bias.requires_grad_(True)


def test_same_call_same_result_also_under_autocast(whole):
    with torch.autocast("cpu", torch.bfloat16):
        assert timeless(run()) == whole


def test_limits_choose_stratified_images_and_are_written_down():
    x, y = digits()
    result = run(data=(x[-300:], y[-300:]), autoattack_images=20, pgd_images=50)
    assert (result.autoattack.n, result.pgd.n) == (20, 50)
    assert {n for _, n in result.autoattack.per_class} == {2}
    assert result.data.stratified and result.data.autoattack_images == 20 and result.data.size == 300
    assert set(result.autoattack.indices) <= set(result.clean.indices)
    without = run(attacks=("clean", "pgd"), pgd_images=30)
    assert without.clean.n == without.pgd.n == 30 and not without.data.stratified


def test_shards_of_indices_merge_to_one_result():
    whole = run(attacks=("clean", "pgd"), pgd_images=30)
    merged = merge([run(attacks=("clean", "pgd"), pgd_images=30, indices=range(a, a + 20)) for a in (20, 0)])
    assert merged.clean == whole.clean and merged.data == whole.data
    assert merged.pgd.indices == whole.pgd.indices


def test_a_timm_model_is_given_pixels_and_normalises_itself():
    net = timm.create_model(
        "test_resnet", num_classes=10, pretrained_cfg_overlay={"mean": (0.5,) * 3, "std": (0.2,) * 3}
    )
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = net.eval()((x - 0.5) / 0.2).argmax(1)
    for each in (net, timm_arat.in_pixels(net)):
        assert evaluate(each, (x, y), attacks=("clean",), progress=False).clean.accuracy == 1


def test_any_data_set_of_pairs_will_do(whole):
    x, y = images()
    pairs = [(image, int(label)) for image, label in zip(x, y, strict=True)]
    assert run(data=pairs, attacks=("clean", "pgd")).pgd == whole.pgd
    assert run(data=TensorDataset(x, y), attacks=("clean",)).clean == whole.clean


def test_a_shard_may_hold_none_of_autoattacks_images():
    (outside, *_) = set(range(40)) - set(run(autoattack_images=5, attacks=("clean", "autoattack")).autoattack.indices)
    result = run(autoattack_images=5, pgd_images=5, indices=[*range(40)])
    empty = run(autoattack_images=5, indices=[outside])
    assert (empty.autoattack.n, empty.clean.n, empty.warnings) == (0, 1, ())
    assert result.autoattack.n == 5


@pytest.mark.parametrize("norm, eps", [("l2", 0.4), ("l1", 1.0)])
def test_other_norms(norm, eps):
    result = run(norm=norm, eps=eps)
    assert result.clean.accuracy > result.autoattack.accuracy > 0


def test_fewer_than_ten_classes():
    x, y = digits(5)
    result = run(trained(5), (x[-30:], y[-30:]))
    assert result.autoattack.n == 30 and result.attacks["autoattack"] == "standard, 4 targets"


class Killed(Exception):
    pass


@pytest.mark.parametrize("calls", [20, 40, 300])  # the checks before the first batch take some calls
def test_a_killed_run_resumes_to_the_same_result(tmp_path, whole, calls):
    state, left = tmp_path / "deep" / "state", [calls]

    def kill(*_):
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    hook = trained().register_forward_hook(kill)
    try:
        with pytest.raises(Killed):
            run(state=state)
    finally:
        hook.remove()
    with state.open("a") as file:
        file.write('{"stage": "clean", "bat')  # as if it had died while writing
    lines = state.read_text().count("\n")
    assert timeless(run(state=state)) == whole
    assert state.read_text().count("\n") > lines
    before = state.read_text()
    assert timeless(run(state=state)) == whole and state.read_text() == before


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"eps": 0.11}, "threat"),
        ({"seed": 1}, "seed"),
        ({"batch_size": 17}, "batch_size"),
        ({"data": images(39)}, "images"),
        ({"pgd_images": 20}, "pgd_images"),
        ({"net": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}, "weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_state_of_another_evaluation_is_refused(tmp_path, changes, named):
    run(attacks=("clean",), state=tmp_path / "state")
    before = (tmp_path / "state").read_text()
    with pytest.raises(ValueError, match=f"another evaluation.*{named}"):
        run(state=tmp_path / "state", attacks=("clean",), **changes)
    assert (tmp_path / "state").read_text() == before


@pytest.mark.parametrize("what", ["versions", "device_name"])
def test_a_state_of_other_libraries_or_another_device_is_refused(tmp_path, monkeypatch, what):
    run(attacks=("clean",), state=tmp_path / "state")
    monkeypatch.setattr(_evaluate, what, lambda *_: {"torch": "1.0"} if what == "versions" else "another machine's")
    with pytest.raises(ValueError, match=f"another evaluation.*{what.removesuffix('_name')}"):
        run(state=tmp_path / "state", attacks=("clean",))


@pytest.mark.parametrize("text", ["hello\n", "[1, 2]\n", '{"weights": 1}\n{}\n', "\x00\x01"])
def test_a_foreign_state_file_is_refused(tmp_path, text):
    (tmp_path / "state").write_text(text)
    with pytest.raises(ValueError, match="state (is not a resume file|belongs to another)"):
        run(state=tmp_path / "state")


class Noisy(nn.Module):
    def forward(self, x):
        return torch.randn(len(x), 10)


class Constant(nn.Module):
    def __init__(self, row):
        super().__init__()
        self.row = torch.tensor(row)

    def forward(self, x):
        return self.row.expand(len(x), -1)


@pytest.mark.parametrize(
    "net, options, message",
    [
        (Constant([1.0, 2.0, 3.0]), {}, r"labels span 0 to 9.*3 classes"),
        (Constant([float("nan")] * 10), {}, "NaN or infinite logits"),
        (Constant([0.1] * 10), {}, "probabilities.*softmax"),
        (Noisy(), {}, "differently in evaluation mode"),
        (nn.Conv2d(1, 3, 1), {}, r"gives \(16, 3, 8, 8\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).bfloat16(), {}, r"bfloat16.*model\.float\(\)"),
        (nn.Conv2d(3, 3, 1), {}, r"cannot take images of shape \(1, 8, 8\)"),
        (None, {"eps": 8.0}, "8/255 rather than 8"),
        (None, {"eps": None, "norm": "l2"}, "eps must be given"),
        (None, {"attacks": ("clean", "pdg")}, "pdg; known"),
        (None, {"autoattack_images": 0}, "autoattack_images=0"),
        (None, {"batch_size": 0}, "batch_size=0"),
        (None, {"indices": range(30, 60)}, "span 30 to 59.*0 to 39"),
        (None, {"indices": []}, "none of the 40 images"),
        (None, {"data": (255 * images()[0], images()[1])}, r"wanted .*\[0, 1\]"),
        (None, {"data": (images()[0], images()[1] - 1)}, "labels span -1"),
        (None, {"data": (images()[0], images()[1][:-1])}, "wanted 40 integers"),
        (None, {"data": (images()[0][:, 0], images()[1])}, "wanted CxHxW"),
        ("resnet18x", {}, "no model is called 'resnet18x'.*resnet18"),
        ("test_resnet.nonsense", {}, "nonsense"),
        ("resnet20_cifar", {}, "resnet20_cifar has no trained weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_measured_is_refused(net, options, message):
    with pytest.raises(ValueError, match=message):
        run(net, **options)


@pytest.fixture
def exported(tmp_path):
    """A run's folder with a small timm model that takes 32x32 grey images."""
    net = timm.create_model(
        "test_resnet", num_classes=10, in_chans=1, pretrained_cfg_overlay={"input_size": (1, 32, 32)}
    )
    timm.models.save_for_hf(net, tmp_path / "run" / "model", model_args={"in_chans": 1}, safe_serialization=True)
    return tmp_path / "run"


@pytest.mark.parametrize("form", ["{}", "{}/model", "local-dir:{}/model"])
def test_a_runs_folder_and_its_model_are_the_same_model(exported, form):
    result = evaluate(form.format(exported), DataConfig(), attacks=("clean",), progress=False)
    assert (result.data.name, result.data.split, result.clean.n) == ("digits", "test", 360)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing"])
def test_a_damaged_checkpoint_is_one_line(exported, damage):
    weights = exported / "model" / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "foreign":
        config = exported / "model" / "config.json"
        config.write_text(config.read_text().replace("test_resnet", "test_vit"))
    else:
        weights.unlink()
    with pytest.raises(
        ValueError, match="(not a model that timm can load|holds no model.safetensors).*export it again"
    ) as error:
        evaluate(str(exported), DataConfig(), progress=False)
    assert "\n" not in str(error.value)


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    main()


def test_command_prints_the_table_and_writes_the_json(exported, monkeypatch, capsys):
    command(monkeypatch, exported, "--data.name", "digits", "--attack", "pgd", "--pgd_images", "20", "--eps", "8/255")
    result = Robustness.load(exported / "results.json")
    assert result.pgd.n == 20 and result.eps == 8 / 255 and "--pgd_images 20" in result.command
    assert "eps=8/255" in capsys.readouterr().out
    assert sorted(os.listdir(exported)) == ["model", "results.json"]


def test_interrupted_command_says_how_to_go_on_and_does(exported, monkeypatch, capsys):
    words = [exported, "--data.name", "digits", "--attack", "pgd", "--pgd_images", "20", "--batch_size", "5"]
    perturb, left = timm_arat.PGD.perturb, [1]

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return perturb(*args)

    monkeypatch.setattr(timm_arat.PGD, "perturb", interrupted)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *words)
    assert stop.value.code == 130 and "results.json.state" in capsys.readouterr().out
    monkeypatch.setattr(timm_arat.PGD, "perturb", perturb)
    command(monkeypatch, *words)
    resumed = json.loads((exported / "results.json").read_text())
    (exported / "results.json").unlink()
    command(monkeypatch, *words)
    again = json.loads((exported / "results.json").read_text())
    assert {**resumed, "seconds": 0} == {**again, "seconds": 0}


@pytest.mark.parametrize(
    "words, message",
    [
        (["resnet18x"], "no model is called"),
        (["--pgd_image", "3"], "pgd_images"),
        (["x", "--attack", "pdg"], "pgd"),
        ([], "model"),
    ],
)
def test_bad_command_is_one_line(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *words)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and last.startswith("error: ") and message in last


def test_recipe_answers_help():
    recipe = Path(__file__).parents[1] / "recipes" / "evaluate.py"
    done = subprocess.run([sys.executable, recipe, "--help"], capture_output=True, text=True, check=True)
    assert "--pgd_images" in done.stdout and "--data.name" in done.stdout
