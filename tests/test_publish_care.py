"""What publishing never does.

Delete or send what it did not write, follow a link, tell where somebody's files lie, take text of others for markup, or
put numbers beside a model, images or a threat that are not theirs.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

import timm_arat
from timm_arat.data import DataConfig
from timm_arat.evaluation import Score
from timm_arat.hub import _pictures, assemble
from timm_arat.hub._agree import check_run, threat_of
from timm_arat.hub._card import _model_index
from timm_arat.hub._curves import Curves
from timm_arat.hub._escape import fenced, inline
from timm_arat.hub._files import files, left_out
from timm_arat.hub._pictures import _eps, _figure
from timm_arat.hub._public import public, public_command
from timm_arat.hub._publish import _operations, _why_not, check
from timm_arat.models import _weights

CLASSES = ["$x_{", "<b>&|`", "a very long name of a class, longer than a picture is wide", "plain"]
REPO = "tester/resnet20_cifar_arat.pets_linf26"
NOTE = "From /home/somebody/My pets; <script>alert(1)</script>\n# A heading | `code` [a](javascript:b) **bold**"
SMALL: dict[str, Any] = {"layers": [1, 1], "channels": [8, 16]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on a folder of images: its model is untrained, its results are measured."""
    home = tmp_path_factory.mktemp("somebody")
    root, folder = home / "images" / "my pets", home / "runs" / "mine"
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 1), ("test", 8)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{index}.png")
    torch.manual_seed(0)
    cfg = {"input_size": (3, 8, 8), "num_classes": len(CLASSES), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    model = timm.create_model("resnet20_cifar", pretrained_cfg_overlay=cfg, **SMALL)
    timm_arat.convert_split_norm(model)
    facts = {"method": "arat", "data": "folder", "epochs": 1, "seed": 0}
    timm_arat.export(model, folder / "model", model_args=SMALL, training=facts, label_names=sorted(CLASSES))
    (folder / "weights").mkdir()
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "weights/best.safetensors"
    )
    data = {"name": "folder", "root": str(root), "image_size": 8, "workers": 0}
    settings = {
        "data": data,
        "attack": {"norm": "linf", "eps": 0.1, "steps": 3},
        "method": {"name": "arat"},
        "evaluation": {"norm": None, "eps": None},
        "output": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "summary.jsonl").write_text(json.dumps({"epoch": 1, "seconds": 2.0, "checkpoint": str(folder)}) + "\n")
    (folder / "command.txt").write_text(f"{home}/code/recipes/train.py --data.root '{root}' --output={folder}\n")
    measured = timm_arat.evaluate(
        folder, DataConfig(**data), eps=0.1, autoattack_images=6, progress=False, command=f"'{root}/x.py' -o '{root}'"
    )
    measured.save(folder / "results.json")
    return folder


@pytest.fixture(scope="module")
def assembled(run, tmp_path_factory) -> Path:
    cards = tmp_path_factory.mktemp("cards")
    return assemble(run, cards / REPO.partition("/")[2], REPO, images=9, dataset={"note": NOTE})


@pytest.fixture
def folder(assembled, tmp_path) -> Path:
    return Path(shutil.copytree(assembled, tmp_path / "cards" / assembled.name, symlinks=True))


@pytest.fixture
def changed(run, tmp_path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(run, tmp_path / "changed"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# 1. Nothing is deleted that was not written here.


@pytest.mark.parametrize(
    "there",
    [
        {"chapter1.tex": "years of work"},
        {"config.json": "{}", "model.safetensors": "precious"},
        {"hub.json": '{"repo_id": "me/thesis"}', "config.json": '{"name": "another program"}', "a/b.txt": "x"},
        {"hub.json": "torn", "config.json": "torn"},
    ],
)
def test_a_folder_of_somebody_else_is_refused_before_any_work(there, run, tmp_path, monkeypatch):
    monkeypatch.setattr("timm_arat.hub._assemble.check_run", lambda *_: pytest.fail("work was begun"))
    for name, text in there.items():
        (tmp_path / "precious" / "thesis" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "precious" / "thesis" / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="thesis exists and was not written by this program.*nothing there is touched"):
        assemble(run, tmp_path / "precious" / "thesis", "me/thesis")
    assert content(tmp_path) == before


def test_a_link_or_a_file_in_the_folder_s_place_is_refused(run, tmp_path, folder):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(ValueError, match=f"{name} is a {name}"):
            assemble(run, tmp_path / name, "me/thesis")


def test_assembled_again_what_else_lies_there_stays(run, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / ".env").write_text("TOKEN=secret")
    before = content(folder)
    assemble(run, folder, REPO, images=9, dataset={"note": NOTE}, license="cc-by-nc-4.0")
    assert "\nlicense: cc-by-nc-4.0\n" in (folder / "README.md").read_text()
    after = content(folder)
    assert after["notes.txt"] == b"mine" and after[".env"] == b"TOKEN=secret" and after.keys() == before.keys()
    assert after["model.safetensors"] == before["model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing is left beside it"


def test_an_export_replaces_exports_only(tmp_path):
    model = timm.create_model("resnet20_cifar", **SMALL)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").write_text("precious")
    with pytest.raises(ValueError, match=r"holds model.safetensors and is no exported model.*nothing there is touched"):
        timm_arat.export(model, tmp_path / "theirs")
    assert content(tmp_path) == {"theirs/model.safetensors": b"precious"}

    ours = timm_arat.export(model, tmp_path / "ours", model_args=SMALL)
    (tmp_path / "elsewhere").write_bytes((ours / "model.safetensors").read_bytes())
    (ours / "model.safetensors").unlink()
    (ours / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    timm_arat.export(timm.create_model("resnet20_cifar", **SMALL), ours, model_args=SMALL)
    assert (tmp_path / "elsewhere").read_bytes() == before, "written through a link"
    assert not (ours / "model.safetensors").is_symlink()


class Hub:
    def __init__(self, *names: str):
        self.names = names

    def list_repo_files(self, repo_id: str, revision: Any) -> list[str]:
        return list(self.names)


def test_a_repository_of_somebody_else_is_left_alone(folder):
    api: Any = Hub(".gitattributes", "README.md", "thesis.pdf")
    with pytest.raises(ValueError, match="me/thesis holds README.md and no checkpoint of this program"):
        _operations(api, folder, {}, "me/thesis", None)
    api = Hub(".gitattributes", "thesis.pdf", *files(folder), "mix.png")
    (folder / "mix.png").unlink(missing_ok=True)
    operations = {each.path_in_repo: type(each).__name__ for each in _operations(api, folder, {}, "me/thesis", None)}
    assert operations.pop("mix.png") == "CommitOperationDelete", "ours, and no longer in the folder"
    assert set(operations) == set(files(folder)) and set(operations.values()) == {"CommitOperationAdd"}


# 2. Numbers stand beside what they are of.


def test_the_run_is_published(run, assembled):
    assert check(assembled) == REPO
    config = json.loads((assembled / "config.json").read_text())
    assert config["threat"] == {"norm": "linf", "eps": 0.1}
    assert (
        config["dataset"]["name"] == config["dataset"]["source"] == "my pets" and config["dataset"]["split"] == "test"
    )


def test_results_for_another_threat_are_refused(changed, folder):
    results = timm_arat.Robustness.load(changed / "results.json")
    for other in ({"eps": 0.05}, {"norm": "l2"}):
        replace(results, **other).save(changed / "results.json")
        with pytest.raises(ValueError, match=r"was measured for .*config.yaml says linf eps 0.1: evaluate again"):
            check_run(changed)
        replace(timm_arat.Robustness.load(folder / "results.json"), **other).save(folder / "results.json")
        with pytest.raises(ValueError, match=r"was measured for .*config.json says linf eps 0.1: evaluate again"):
            check(folder)
        shutil.copyfile(changed.parent / "changed" / "results.json", folder / "results.json")


@pytest.mark.parametrize(
    ("settings", "threat"),
    [
        ({"evaluation": {"norm": None, "eps": None}, "attack": {"norm": "l2", "eps": 0.5}}, ("l2", 0.5)),
        ({"evaluation": {"norm": "l1", "eps": 12}, "attack": {"norm": "l2", "eps": 0.5}}, ("l1", 12)),
        ({"evaluation": {"eps": "4/255"}, "attack": {"norm": "linf", "eps": 0.5}}, ("linf", 4 / 255)),
        ({"evaluation": {"norm": "linf", "eps": None}, "method": {"attack": {"eps": 0.15}}}, ("linf", 0.15)),
        ({"method": {"name": "standard"}}, ("linf", 8 / 255)),
        ({"method": None, "attack": None, "evaluation": None}, ("linf", 8 / 255)),
    ],
)
def test_the_threat_of_a_run(settings, threat, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    own = threat_of(tmp_path)
    assert own.norm == threat[0] and own.radius == pytest.approx(threat[1])


def test_results_of_other_images_are_refused(changed, tmp_path):
    settings = yaml.safe_load((changed / "config.yaml").read_text())
    root = Path(shutil.copytree(settings["data"]["root"], tmp_path / "copy"))
    settings["data"]["root"] = str(root)
    (changed / "config.yaml").write_text(yaml.safe_dump(settings))
    results = timm_arat.Robustness.load(changed / "results.json")
    path = root / "test" / "plain" / "3.png"
    image = Image.open(path)
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
    image.save(path)
    with pytest.raises(ValueError, match="was measured on other images"):
        assemble(changed, tmp_path / "one pixel".replace(" ", "_"), REPO)
    settings["data"]["image_size"] = 16
    (changed / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"test images are \(3, 16, 16\), the model's config.json says \(3, 8, 8\)"):
        assemble(changed, tmp_path / "size", REPO)
    assert results.data.size == 32 and not (tmp_path / "size").exists()


# 3. What is sent.


def test_what_else_lies_in_the_folder_is_not_sent(folder):
    before = files(folder)
    (folder / ".env").write_text("TOKEN=secret")
    (folder / "notes").mkdir()
    (folder / "notes" / "model.safetensors").write_text("x")
    (folder / "passwords").symlink_to("/etc/passwd")
    assert files(folder) == before and set(left_out(folder)) == {".env", "notes", "passwords"}
    assert check(folder) == REPO


@pytest.mark.parametrize("name", ["training.yaml", "hub.json", "model.safetensors"])
def test_a_link_is_refused_by_name(name, folder, tmp_path):
    (folder / name).rename(tmp_path / "target")
    (folder / name).symlink_to(tmp_path / "target")
    with pytest.raises(ValueError, match=f"{name} is a link, and links are not followed"):
        check(folder)


def test_a_linked_folder_and_a_run_s_links_are_refused(folder, changed, tmp_path):
    (folder / ".eval_results").mkdir(exist_ok=True)
    (folder / ".eval_results").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "timm_arat.yaml").write_text("x")
    (folder / ".eval_results").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=".eval_results is a link"):
        files(folder)
    (changed / "summary.jsonl").unlink()
    (changed / "summary.jsonl").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="summary.jsonl is a link"):
        check_run(changed)


# 4. What a reader sees.


def test_no_file_tells_where_the_publisher_s_files_lie(run, assembled):
    home = str(run.parents[1])
    assert all(home.encode() in (run / name).read_bytes() for name in ("config.yaml", "command.txt", "results.json"))
    for name in files(assembled):
        found = (assembled / name).read_bytes()
        for private in (home, str(Path.home()), str(Path.cwd()), str(assembled.parent), "/home/somebody"):
            assert private.encode() + b"/" not in found and f"{private}\n".encode() not in found, (name, private)
    assert (
        assembled / "command.txt"
    ).read_text() == "accelerate launch recipes/train.py --data.root 'my pets' --output=mine\n"
    assert timm_arat.Robustness.load(assembled / "results.json").command == "x.py -o 'my pets'"
    assert yaml.safe_load((assembled / "training.yaml").read_text())["data"]["root"] == "my pets"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/me/data/pets", "pets"),
        ("hfds//home/me/pets", "hfds/pets"),
        ("hfds/../shared/data/cifar10", "hfds/cifar10"),
        ("hfds/uoft-cs/cifar10", "hfds/uoft-cs/cifar10"),
        ("torch/cifar10", "torch/cifar10"),
        ("local-dir:/home/me/model", "local-dir:model"),
        ("~/pets", "pets"),
        (r"C:\Users\me\pets", "pets"),
        ("linf 8/255 and/or l2, 3.5/7", "linf 8/255 and/or l2, 3.5/7"),
        ("from /home/me/pets, at night", "from pets, at night"),
        ("https://host/a/b", "https://host/a/b"),
        ("https://me:secret@host/a", "https://host/a"),
        ('{"root": "/home/me/pets"}', '{"root": "pets"}'),
    ],
)
def test_public_copies(text, wanted):
    assert public(text) == wanted


def test_a_public_command_runs_as_before_where_it_names_no_path():
    plain = """recipes/train.py --config digits --model.kwargs '{"layers": [1, 1]}' --eps 8/255"""
    assert public_command(plain) == plain
    assert public_command("/usr/bin/train.py '/home/me/my pets' --o=/x/y") == "train.py 'my pets' --o=y"
    assert public_command("it's /home/me/x") == "'it'\"'\"'s' x"


def test_text_of_others_is_no_markup(assembled):
    card = (assembled / "README.md").read_text()
    assert "<script>" not in card and "&lt;script&gt;alert(1)&lt;/script&gt;" in card
    assert "\n# A heading" not in card and r"\# A heading \| \`code\` \[a\](javascript:b) \*\*bold\*\*" in card
    assert "From My pets;" in card


def test_escapes():
    assert (
        inline("resnet20_cifar_arat.cifar10_linf8 (JPEG, 8/255)") == "resnet20_cifar_arat.cifar10_linf8 (JPEG, 8/255)"
    )
    assert inline("_x_ a_b") == r"\_x\_ a_b" and inline("- x") == r"\- x" and inline("2024. x") == r"2024\. x"
    assert fenced("a ```` b", "bash") == "`````bash\na ```` b\n`````"


def test_the_data_set_s_name_is_one_that_the_hub_takes(assembled):
    results = timm_arat.Robustness.load(assembled / "results.json")
    for name, wanted in (("my pets", "my-pets"), ("hfds/uoft-cs/cifar10", "uoft-cs/cifar10"), ("torch/mnist", "mnist")):
        named = replace(results, data=replace(results.data, name=name))
        assert {each.dataset_type for each in _model_index(named, {"name": "x"})} == {wanted}


def test_a_password_in_the_address_of_the_hub_is_never_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(_weights.constants, "ENDPOINT", "https://me:secret@mirror.example")

    def fail(*_, **__):
        raise _weights.LocalEntryNotFoundError("no https://me:secret@mirror.example/x")

    monkeypatch.setattr(_weights, "hf_hub_download", fail)
    monkeypatch.setattr(_weights.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=r"https://mirror.example was not reached") as error:
        _weights.download("org/model")
    assert "secret" not in str(error.value)
    assert "secret" not in _why_not(OSError("https://me:secret@mirror.example/api: 500"), "org/model")
    cards = tmp_path / "cards"
    monkeypatch.setattr(_weights, "CARDS", cards)
    (cards / "x.y").mkdir(parents=True)
    record = {"repo_id": "org/m", "revision": "1", "sha256": "0", "url": "https://mirror.example/org/m/commit/1"}
    (cards / "x.y" / "hub.json").write_text(json.dumps(record))
    assert _weights._pinned("x.y") == "org/m@1", "it is found again on that Hub"


# 5. The ends of the scale.


@pytest.mark.parametrize("n", [10, 48])
@pytest.mark.parametrize("right", [True, False])
def test_pictures_at_0_and_100_percent(n, right, assembled, tmp_path):
    score = Score.of(range(n), [right] * n, [0] * n, len(CLASSES))
    results = timm_arat.Robustness.load(assembled / "results.json")
    results = replace(results, scores=dict.fromkeys(results.scores, score))
    curves = Curves(
        tuple(replace(each, scores=dict.fromkeys(each.scores, score)) for each in Curves.load(assembled).eps)
    )
    _figure(tmp_path / "eps.png", (5, 3.4), lambda axis: _eps(axis, results, curves))
    assert (tmp_path / "eps.png").stat().st_size > 1000


@pytest.mark.parametrize("n", [3, 8, 32])
def test_the_examples_are_of_every_class_though_a_folder_has_them_class_by_class(n, assembled, tmp_path, monkeypatch):
    figures = []

    def new(size):
        figures.append(Figure(figsize=size))
        return figures[-1]

    class Rightly(torch.nn.Module):
        """The class of an image is its grey in quarters, and stays so within the threat."""

        def forward(self, x):
            return -(x.mean((1, 2, 3))[:, None] * 4 - torch.arange(4) - 0.5).abs()

    monkeypatch.setattr(_pictures, "_new_figure", new)
    y = torch.arange(n) * 4 // n
    x = ((y + 0.5) / 4).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    results = replace(timm_arat.Robustness.load(assembled / "results.json"), norm="linf", eps=0.01)
    _pictures._examples(tmp_path / "examples.png", Rightly(), (x, y), results, list("abcd"))
    (figure,) = figures
    titles = [axis.get_title() for axis in figure.axes[: min(n, 8)]]
    assert titles == sorted(titles) and set(titles) == {"abcd"[label] for label in y.tolist()}
