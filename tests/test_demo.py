"""The demo without its page: opening, preparing, attacking and explaining, and the folder of a Space; no gradio."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import SpaceCard
from PIL import Image

import timm_arat
from timm_arat.demo import __main__ as command
from timm_arat.demo import _shown, _zoo
from timm_arat.demo._attack import Outcome, attack, explain, magnified, picture, prepare
from timm_arat.demo._zoo import Zoo
from timm_arat.evaluation._known import Known

EMBEDDED = "resnet20_cifar_arat.cifar10_linf8"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def zoo():
    return Zoo()


@pytest.fixture(scope="module")
def checkpoint(zoo):
    return zoo.open(EMBEDDED)


@pytest.fixture
def ship(tmp_path):
    _shown._ship().save(tmp_path / "ship.png")
    return tmp_path / "ship.png"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of a model with a mean, a std and a crop, of one branch, for an l2 threat that its run knows."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    timm_arat.export(model, folder / "model", model_args={"num_classes": 3}, label_names=["a", "b", "a"])
    (folder / "config.yaml").write_text("attack: {norm: l2, eps: 0.5}\n")
    return folder


def test_the_checkpoints_are_those_that_load_by_name_and_one_of_them_opened(zoo, checkpoint):
    assert zoo.names == [row.name for row in timm_arat.list_robust()] and zoo.first == zoo.names[0]
    assert (checkpoint.norm, checkpoint.eps, checkpoint.levels) == ("linf", 8 / 255, 255)
    assert checkpoint.labels[3] == "cat" and len(checkpoint.labels) == 10 and checkpoint.has_dial
    (row,) = [row for row in timm_arat.list_robust() if row.name == EMBEDDED]
    assert f"{100 * row.autoattack:.1f} % under AutoAttack" in checkpoint.about and "airplane" in checkpoint.about
    with pytest.raises(ValueError, match="not on offer"):
        zoo.open("resnet50")
    with pytest.raises(ValueError, match="nor a folder"):
        Zoo("resnet21_cifar_arat")


def test_the_dial_goes_from_the_published_model_to_the_clean_branch(checkpoint):
    x = torch.rand(2, 3, 32, 32)
    published = timm.create_model(EMBEDDED, pretrained=True).eval()
    both = timm.create_model(EMBEDDED, pretrained=True, split_norm=True).eval()
    clean = timm_arat.merge_split_norm(both, branch="aux")
    with torch.no_grad():
        assert torch.equal(checkpoint.deployed(1.0)(x), clean(x))
        assert torch.equal(checkpoint.deployed(0.0)(x), published(x))  # after the other: the opened one is as it was
        assert not torch.equal(checkpoint.deployed(0.5)(x), published(x))
    with pytest.raises(ValueError, match="mix"):
        checkpoint.deployed(1.5)


def test_a_folder_is_opened_with_the_threat_of_its_run(exported, ship):
    zoo = Zoo(str(exported))
    own = zoo.open(zoo.first)
    assert zoo.first == str(exported) and EMBEDDED in zoo.names
    assert (own.norm, own.eps, own.levels, own.has_dial) == ("l2", 0.5, 1, False)
    assert own.labels == ("a (0)", "b", "a (2)")  # two classes of one name stay two
    fields = _shown.settings(own)
    assert not fields["mix"]["visible"] and fields["eps"]["maximum"] == 2.0 and "l2" in fields["eps"]["label"]
    with pytest.raises(ValueError, match="nothing to mix"):
        own.deployed(0.5)
    outcome = attack(own, prepare(own, ship), eps=0.5, steps=3)
    assert 0 < float((outcome.x_adv - outcome.x).norm()) <= 0.5 * (1 + 1e-5)
    assert "l2 norm of at most 0.5" in explain(own, outcome)


def test_a_picture_is_prepared_as_timm_does_for_the_model_but_for_the_normalisation(exported, tmp_path):
    own = Zoo(str(exported)).open(str(exported))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (211, 307, 3), dtype=np.uint8))
    image.save(tmp_path / "noise.png")
    wanted = timm.data.create_transform(**timm.data.resolve_model_data_config(own.model))(image)
    found = own.deployed(0).normalize(prepare(own, tmp_path / "noise.png"))[0]
    torch.testing.assert_close(found, wanted)
    assert wanted.min() < 0  # it does normalise


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (30, 700), (640, 427)])
def test_any_size_and_kind_of_pixel(checkpoint, tmp_path, mode, size):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new(mode, size).save(path)
    x = prepare(checkpoint, path)
    assert x.shape == (1, 3, 32, 32) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1


def test_transparent_pixels_are_white_and_a_turned_camera_is_followed(checkpoint, tmp_path):
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert prepare(checkpoint, tmp_path / "clear.png").min() == 1
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (0, 0, 64, 32))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    x = prepare(checkpoint, tmp_path / "turned.png")
    assert x[..., :12, :].max() < 0.1 and x[..., 20:, :].min() > 0.9


def test_what_is_no_picture_is_said_in_a_sentence(checkpoint, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="this picture cannot be read"):
        prepare(checkpoint, tmp_path / "text.png")
    Image.new("RGB", (1000, 2)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match="1000x2 pixels, too long a strip"):
        prepare(checkpoint, tmp_path / "strip.png")


def test_the_attack_stays_within_eps_lowers_the_class_and_comes_out_the_same_again(checkpoint, ship):
    x = prepare(checkpoint, ship)
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    outcome, again = (attack(checkpoint, x, eps=8 / 255) for _ in range(2))
    assert torch.equal(outcome.x_adv, again.x_adv) and torch.equal(outcome.x, x)
    assert 0 < (outcome.x_adv - x).abs().max() <= 8 / 255 + 1e-6
    assert outcome.x_adv.min() >= 0 and outcome.x_adv.max() <= 1
    assert outcome.attacked == int(outcome.before.argmax()) and not outcome.chosen and outcome.steps == 20
    assert outcome.after[outcome.attacked] < outcome.before[outcome.attacked]
    assert float(outcome.before.sum()) == pytest.approx(1) and float(outcome.after.sum()) == pytest.approx(1)
    cat = attack(checkpoint, x, eps=8 / 255, label=3)
    assert cat.attacked == 3 and cat.chosen and cat.after[3] < cat.before[3]
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.model.state_dict().items())
    assert not checkpoint.model.training and all(p.requires_grad for p in checkpoint.model.parameters())


def test_the_dial_is_in_what_is_asked_and_attacked(checkpoint, ship):
    x = prepare(checkpoint, ship)
    robust, clean = (attack(checkpoint, x, eps=8 / 255, mix=mix) for mix in (0.0, 1.0))
    with torch.no_grad():
        wanted = checkpoint.deployed(1.0)(clean.x_adv)[0].double().softmax(-1)
    torch.testing.assert_close(clean.after, wanted)
    lost = [float(each.before[each.attacked] - each.after[each.attacked]) for each in (robust, clean)]
    assert lost[1] > lost[0]  # the clean branch falls further


def test_eps_0_changes_nothing(checkpoint, ship):
    outcome = attack(checkpoint, prepare(checkpoint, ship), eps=0)
    assert torch.equal(outcome.x_adv, outcome.x) and torch.equal(outcome.before, outcome.after)
    assert "Nothing was changed" in explain(checkpoint, outcome)
    perturbation, factor = magnified(outcome)
    assert perturbation.unique().tolist() == [0.5] and factor == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"eps": 33 / 255}, "eps is 0.129"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 10**9}, "1000000000 steps"),
        ({"label": 10}, "no class 10"),
        ({"label": -2}, "no class -2"),
        ({"mix": 2.0}, "mix=2.0"),
    ],
)
def test_what_no_slider_gives_is_refused(checkpoint, wrong, said):
    with pytest.raises(ValueError, match=said):
        attack(checkpoint, torch.rand(1, 3, 32, 32), **{"eps": 8 / 255, **wrong})


def test_the_words_say_what_happened(checkpoint):
    def sure(index):
        return torch.full((10,), 0.01).index_fill(0, torch.tensor(index), 0.91)

    x = torch.full((1, 3, 32, 32), 0.5)
    fooled = Outcome(x, x + 8 / 255, sure(3), sure(5), attacked=3, chosen=False, eps=8 / 255, steps=20)
    words = explain(checkpoint, fooled)
    assert "### It was fooled" in words and "from **cat** (91 %) to **dog** (91 %)" in words
    assert "no pixel value moved by more than 8/255" in words
    assert "away from **cat**, the model's own prediction, since no true class is chosen" in words
    words = explain(checkpoint, replace(fooled, after=sure(3), chosen=True))
    assert "### It held" in words and "stayed **cat** (91 %)" in words and "which you chose" in words
    assert "### Wrong before the attack" in explain(checkpoint, replace(fooled, attacked=8, chosen=True))
    perturbation, factor = magnified(fooled)
    assert factor == pytest.approx(255 / 16) and perturbation.min() == pytest.approx(1)


def test_a_shown_picture_keeps_the_pixels():
    x = torch.randint(0, 256, (1, 3, 32, 32)) / 255
    shown = np.asarray(picture(x))
    assert shown.shape == (320, 320, 3)
    assert np.array_equal(shown[::10, ::10], (x[0] * 255).round().byte().permute(1, 2, 0).numpy())
    assert picture(torch.rand(1, 1, 8, 8)).mode == "L"


def test_an_answer_is_what_the_page_shows(zoo, checkpoint, ship):
    words, before, after, *pictures, caption = _shown.answer(zoo, EMBEDDED, str(ship), 8, 0.0, -1, 20)
    outcome = attack(checkpoint, prepare(checkpoint, ship), eps=8 / 255)
    assert words == explain(checkpoint, outcome)
    assert list(before) == list(checkpoint.labels) and max(before, key=before.get) == "ship"
    assert list(after.values()) == outcome.after.tolist()
    assert len(pictures) == 3 and all(isinstance(each, Image.Image) for each in pictures) and "15.9" in caption
    with pytest.raises(ValueError, match="no picture yet"):
        _shown.answer(zoo, EMBEDDED, None, 8, 0.0, -1, 20)
    with pytest.raises(ValueError, match="not on offer"):
        _shown.answer(zoo, "hf-hub:else/where", str(ship), 8, 0.0, -1, 20)


def test_only_the_last_few_checkpoints_stay_in_memory(monkeypatch):
    zoo = Zoo()
    zoo.names += ["second", "third"]
    loaded = []
    monkeypatch.setattr(_zoo, "_by_folder", lambda name: loaded.append(name) or timm.create_model("test_resnet"))
    monkeypatch.setattr(_zoo, "known", lambda name: Known({}))
    kept = zoo.open("second")
    assert zoo.open("second") is kept and loaded == ["second"]
    assert kept.eps == 8 / 255 and len(kept.labels) == 1000 and len(set(kept.labels)) == 1000
    assert "goldfish" in kept.labels and "990 more" in kept.about
    zoo.open("third"), zoo.open(EMBEDDED)
    assert zoo.open("second") is not kept and loaded == ["second", "third", "second"] and _zoo.KEPT == 2


def test_the_examples_are_pictures(checkpoint):
    found = _shown.examples()
    assert found[0].name == "drawn_ship.png"
    for path in found:
        assert prepare(checkpoint, path).shape == (1, 3, 32, 32)


def test_a_space_is_written_whole_and_never_over_something(tmp_path):
    folder = command.write_space(tmp_path / "space", EMBEDDED)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    card = SpaceCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert (data["sdk"], data["app_file"], data["license"]) == ("gradio", "app.py", "apache-2.0")
    assert data["sdk_version"].startswith("6.") and "timm-arat/resnet20_cifar_arat.cifar10_linf8" in data["models"]
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1])["title"] in card.text
    launched = []
    code = (folder / "app.py").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_arat.demo, "launch", lambda *given: launched.append(given), raising=False)
        exec(compile(code, "app.py", "exec"), {})
    assert launched == [(EMBEDDED,)]  # no host: in a Space, gradio takes it from the environment
    requirement = (folder / "requirements.txt").read_text().strip()
    assert requirement == f"timm_arat[demo]=={timm_arat.__version__}"
    assert "\ndemo = [" in (ROOT / "pyproject.toml").read_text()
    with pytest.raises(ValueError, match="not empty"):
        command.write_space(folder)
    with pytest.raises(ValueError, match="where a Space finds it"):
        command.write_space(tmp_path / "other", str(tmp_path))
    with pytest.raises(ValueError, match="where a Space finds it"):  # too large for a wheel, and on no Hub yet
        command.write_space(tmp_path / "other", "resnet50_arat.imagenette_linf8")
    assert not (tmp_path / "other").exists()


def test_the_command_without_gradio_names_the_extra_and_the_package_imports_neither(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('hidden')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    run = [sys.executable, "-m", "timm_arat.demo"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 2 and done.stderr.strip().endswith("pip install timm_arat[demo]"), done.stderr
    done = subprocess.run([*run, "--port", "70000"], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 2 and "port=70000 is not in 1 ... 65535" in done.stderr
    code = "import sys, timm_arat, timm_arat.demo.__main__; print({'torch', 'gradio', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_taken_port_is_said_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"nothing can listen at port {port} of 127.0.0.1"):
            command.check_free("127.0.0.1", port)
    command.check_free("127.0.0.1", port)


def test_a_space_is_not_told_where_to_listen():
    with pytest.raises(ValueError, match="host and port: a space, which is written and not started here"):
        command.Options(space="here", host="0.0.0.0", port=80)


def test_by_default_only_this_machine_reaches_the_page():
    assert command.Options().host == "127.0.0.1"
