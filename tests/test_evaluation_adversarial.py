"""`save_adversarial`: what the attacks made of each image, complete after a resume, and never over something else."""

import json
import sys

import pytest
import torch
from helpers_evaluation import EPS, digits, short_attacks, trained
from safetensors import safe_open

from timm_arat.evaluation import _adversarial, _evaluate, evaluate
from timm_arat.evaluation.__main__ import main

ALL = ("clean", "pgd", "autoattack")
N = 40


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_evaluate, "standard_attacks", short_attacks)


def run(folder, **options):
    x, y = digits()
    settings = {"eps": EPS, "batch_size": 16, "progress": False, "attacks": ALL} | options
    return evaluate(trained(), (x[-N:], y[-N:]), save_adversarial=folder, **settings)


def saved(folder):
    with safe_open(folder / "adversarial.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result, tensors and metadata of an undisturbed call, with AutoAttack on fewer images than PGD."""
    folder = tmp_path_factory.mktemp("whole") / "deep" / "adversarial"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_evaluate, "standard_attacks", short_attacks)
        return run(folder, autoattack_images=25), *saved(folder), folder


def test_images_lie_in_ball_and_box_and_the_model_answers_as_written(whole):
    _, found, _, _ = whole
    x, y = digits()
    assert torch.equal(found["x"], x[-N:]) and torch.equal(found["y"], y[-N:])
    assert found["positions"].tolist() == list(range(N))
    reach = (found["x_adv"] - found["x"]).abs().flatten(1).amax(1)
    assert found["x_adv"].dtype == torch.float32 and 0 <= found["x_adv"].min() and found["x_adv"].max() <= 1
    assert reach.max() <= EPS + 1e-6
    # Wrong without an attack: nothing is attacked, and nothing is changed.
    wrong = found["before"] != found["y"]
    assert wrong.any() and torch.equal(wrong, reach == 0) and torch.equal(wrong, found["attack"] == 0)
    with torch.no_grad():
        assert torch.equal(trained()(found["x"]).argmax(1), found["before"])
        logits = trained()(found["x_adv"])
    apart = logits.topk(2).values
    clear = apart[:, 0] - apart[:, 1] > 1e-4  # FAB ends on the boundary, where rounding decides
    assert torch.equal(logits.argmax(1)[clear], found["after"][clear]) and clear.sum() > N - 5


def test_every_image_has_the_strongest_attack_that_broke_it_or_pgd_s(whole):
    result, found, metadata, _ = whole
    names = json.loads(metadata["attack_names"])
    broken_by = {name: set() for name in names}
    for attack in ("pgd", "apgd-ce", "apgd-t", "fab-t", "square"):
        broken_by[attack] = {i for i, right in result.scores[attack].by_index().items() if not right}
    clean_wrong = {i for i, right in result.clean.by_index().items() if not right}
    kinds = set()
    for position, place in zip(found["positions"].tolist(), found["attack"].tolist(), strict=True):
        by_autoattack = [each for each in names[2:] if position in broken_by[each] - clean_wrong]
        expected = "clean" if position in clean_wrong else by_autoattack[0] if by_autoattack else "pgd"
        assert names[place] == expected
        stands = position not in broken_by["square"] | broken_by["pgd"]
        assert (found["after"][position] == found["y"][position]) == stands
        kinds.add((expected, stands))
    assert {("clean", False), ("pgd", True), ("apgd-ce", False)} <= kinds, "a test of something"
    assert (metadata["norm"], float(metadata["eps"]), metadata["model"]) == ("linf", EPS, "Sequential")


@pytest.mark.parametrize("calls", [20, 40, 300])
def test_after_a_kill_and_a_resume_the_images_are_complete(tmp_path, whole, calls):
    state, folder, left = tmp_path / "state", tmp_path / "adversarial", [calls]

    def kill(*_):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    hook = trained().register_forward_hook(kill)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(folder, state=state, autoattack_images=25)
    finally:
        hook.remove()
    assert not folder.exists()
    for _ in range(2):  # the second finds everything done, as after a crash between this and the writing of a result
        run(folder, state=state, autoattack_images=25)
        again, metadata = saved(folder)
        assert metadata == whole[2] and again.keys() == whole[1].keys()
        assert all(torch.equal(again[name], whole[1][name]) for name in again)


def test_a_state_whose_images_are_not_there_is_refused_before_work(tmp_path):
    state, folder = tmp_path / "state", tmp_path / "adversarial"
    run(None, state=state, attacks=("clean", "pgd"))
    before = state.read_text()
    with pytest.raises(ValueError, match="begun without save_adversarial.* 6 finished batches"):
        run(folder, state=state, attacks=("clean", "pgd"))
    assert state.read_text() == before and not folder.exists()
    state.unlink()
    run(folder, state=state, attacks=("clean", "pgd"))
    other = tmp_path / "state.images" / "pgd-0.safetensors"
    other.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="images of 1 finished batches"):
        run(folder, state=state, attacks=("clean", "pgd"))


def test_images_of_another_evaluation_are_not_taken_for_this_one_s(tmp_path):
    state = tmp_path / "state"
    run(tmp_path / "one", state=state, attacks=("clean", "pgd"))
    state.unlink()  # but not its images
    run(None, state=state, attacks=("clean", "pgd"), eps=0.2)
    with pytest.raises(ValueError, match="begun without save_adversarial"):
        run(tmp_path / "two", state=state, attacks=("clean", "pgd"), eps=0.2)


@pytest.mark.parametrize("kind", ["file", "other", "another evaluation", "another's attacks"])
def test_a_folder_that_holds_something_else_is_refused_before_work(tmp_path, monkeypatch, whole, kind):
    folder, options = tmp_path / "adversarial", {"autoattack_images": 25}
    if kind == "file":
        folder.write_text("mine")
    elif kind == "other":
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
    else:
        folder = whole[3]
        options = {"eps": 0.05} if kind == "another evaluation" else options | {"attacks": ("clean", "autoattack")}
    monkeypatch.setattr(_evaluate, "run_attacks", lambda *_, **__: pytest.fail("it went to work"))
    with pytest.raises(
        ValueError, match="save_adversarial=.*(is a file|holds thesis.tex|images of another eval).*give"
    ):
        run(folder, **options)


def test_an_evaluation_without_an_attack_has_none_to_save(tmp_path):
    with pytest.raises(ValueError, match="makes no adversarial image: add pgd"):
        run(tmp_path / "adversarial", attacks=("clean",))


def test_without_pgd_an_image_that_stands_is_left_as_it_is(tmp_path):
    run(tmp_path / "adversarial", attacks=("clean", "autoattack"))
    found, _ = saved(tmp_path / "adversarial")
    stands = found["after"] == found["y"]
    assert stands.any() and not stands.all()
    assert torch.equal(found["x_adv"][stands], found["x"][stands]) and not found["attack"][stands].any()


def test_the_picture_is_drawn_where_it_can_be(tmp_path, whole, monkeypatch):
    from matplotlib.image import imread

    picture = imread(whole[3] / "adversarial.png")
    assert picture.shape[0] > picture.shape[1] > 300 and picture.std() > 0.1
    monkeypatch.setattr(_adversarial, "find_spec", lambda name: None)
    run(tmp_path / "adversarial", attacks=("clean", "pgd"))
    assert [path.name for path in (tmp_path / "adversarial").iterdir()] == ["adversarial.safetensors"]


def test_the_sheet_says_names_answers_and_attacks(monkeypatch, tmp_path, whole):
    from matplotlib.figure import Figure

    from timm_arat.evaluation import Adversarial
    from timm_arat.evaluation._sheet import draw

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    found = Adversarial(**whole[1])
    draw(found, "a title", [f"class $_{i}" for i in range(9)], tmp_path / "x.png")
    (figure,) = drawn
    rows = [figure.axes[i : i + 3] for i in range(0, len(figure.axes), 3)]
    assert len(rows) == 8
    for row in rows:
        position = int(row[2].get_xlabel().removeprefix("image "))
        answer, by = row[1].get_xlabel().split("\n")
        number = int(found.after[position])
        assert answer == (f"class $_{number}" if number < 9 else "9")
        assert by == f"after {['clean', 'pgd', 'apgd-ce', 'apgd-t', 'fab-t', 'square'][found.attack[position]]}"
        assert (row[1].xaxis.label.get_color() == "black") == (number == found.y[position])
        shown = torch.tensor(row[1].get_images()[0].get_array())
        assert torch.allclose(shown, found.x_adv[position, 0])


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    main()


def test_the_command_saves_the_images_and_leaves_nothing_beside_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["resnet20_cifar_arat", "--data.name", "digits", "--data.image_size", "32", "--data.in_chans", "3"]
    words += ["--attack", "pgd", "--pgd_images", "20", "--output", "r.json", "--save_adversarial", "adv"]
    command(monkeypatch, *words, "--per_class", "true")
    said = capsys.readouterr().out
    assert "adversarial images are in adv" in said and "by class, the worst" in said and "automobile" in said
    assert {path.name for path in tmp_path.iterdir()} == {"adv", "r.json"}
    assert not list(tmp_path.glob("*.state*"))
    assert len(saved(tmp_path / "adv")[0]["x_adv"]) == 20
    with pytest.raises(SystemExit):
        command(monkeypatch, *words, "--threats", "{linf: [1/255]}")
    assert "threats is a measurement of its own" in capsys.readouterr().err
