"""Configuration: what is written comes back, what is mistyped is answered with the nearest name."""

import pickle
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from timm_arat.config import cli, dump, read, recipes
from timm_arat.names import nearest


@dataclass(frozen=True)
class Attack:
    """An attack in the eps-ball.

    Args:
        eps: Radius in pixels of [0, 1].
    """

    eps: float = 8 / 255
    steps: int = 10  # gradient steps
    step_size: float | None = None
    norm: Literal["linf", "l2"] = "linf"

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise ValueError(f"eps={self.eps} is not in (0, 1): images are in [0, 1], write 8 / 255 rather than 8")


@dataclass(frozen=True)
class Arat:
    """Invariance with a stop-gradient."""

    weight: float = 30.0
    layers: tuple[str, ...] = ("layer4",)
    attack: Attack = field(default_factory=lambda: Attack(steps=10))


@dataclass(frozen=True)
class Madry:
    attack: Attack = field(default_factory=Attack)
    smoothing: float = 0.0


@dataclass(frozen=True)
class Standard:
    smoothing: float = 0.0


@dataclass(frozen=True)
class Model:
    name: str = "resnet20_cifar"
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to timm.create_model."""


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    nesterov: bool = False
    schedule: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    output: str | None = None
    model: Model = field(default_factory=Model)
    method: Arat | Madry | Standard = field(default_factory=lambda: Arat(attack=Attack(steps=7)))
    twin: Arat | Madry | Standard | None = None
    optim: Optim = field(default_factory=Optim)


PACKAGE = str(Path(__file__).parents[1] / "timm_arat")
METHODS = {"arat": Arat, "madry": Madry, "standard": Standard}
VARIANTS = {"method": METHODS, "twin": METHODS}
YAML = """
model: {name: resnet18, kwargs: {layers: [1, 1]}}
method:
  name: arat
  weight: 3e1
  attack: {eps: 16/255, steps: 3}
twin: {name: standard, smoothing: 0.1}
optim:
  lr: 5e-4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(YAML)
    return str(path)


def run(*args: str, **kwargs: Any) -> Run:
    return read(Run, args, variants=VARIANTS, prog="train", description="Train a classifier.", **kwargs)


def message(*args: str, **kwargs: Any) -> str:
    with pytest.raises(ValueError) as caught:
        run(*args, **kwargs)
    return str(caught.value)


def test_the_words_that_yaml_takes_for_booleans_are_words(tmp_path):
    from timm_arat.engine.recipe import read_recipe

    recipe = tmp_path / "recipe.yaml"
    for text, word in (("on", "on"), ("off", "off"), ('"on"', "on"), ("auto", "auto")):
        recipe.write_text(f"base: digits\ncompile: {text}\nmixed_precision: no\nresume: off\n")
        config = read_recipe(recipe)
        assert (config.compile, config.mixed_precision, config.resume) == (word, "no", False)


def test_without_a_config_the_defaults_of_the_dataclass_hold():
    assert run() == Run()


def test_yaml_is_read_and_the_command_line_wins(recipe):
    config = run("--config", recipe, "--method.attack.steps", "5", "--optim.lr=1/4", "--optim.nesterov")
    assert config == Run(
        model=Model("resnet18", {"layers": [1, 1]}),
        method=Arat(30.0, attack=Attack(eps=16 / 255, steps=5)),
        twin=Standard(0.1),
        optim=Optim(0.25, nesterov=True),
    )


@pytest.mark.parametrize(
    "word, value",
    [("8/255", 8 / 255), ("5e-4", 5e-4), ("1", 1.0), (".5", 0.5)],
)
def test_a_number_may_be_a_fraction_wherever_a_float_stands(word, value, tmp_path):
    assert run("--method.attack.step_size", word).method.attack.step_size == value
    assert run("--optim.betas", f"[{word}, {word}]").optim.betas == (value, value)
    path = tmp_path / "a.yaml"
    path.write_text(f"optim: {{lr: {word}, betas: [{word}, 1/2]}}\nmethod: {{attack: {{eps: 1/3, step_size: {word}}}}}")
    config = run("--config", str(path))
    assert (config.optim.lr, config.optim.betas, config.method.attack.step_size) == (value, (value, 0.5), value)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--twin.name", "madry", "--twin.attack.eps", "1/3", "--output", "a: b #c"),
        ("--method", "standard", "--model.kwargs", "{layers: [1, 1], act: relu, nested: {p: 1e-3}}"),
        ("--method.layers", "[]", "--method.attack.eps", "1e-5", "--output", "12", "--optim.schedule", "[3, 4]"),
        ("--output", "null", "--model.name", "null"),
    ],
    ids=str,
)
def test_what_dump_writes_read_takes_back(args, recipe, tmp_path):
    for config in (run(*args), run("--config", recipe, *args)):
        path = tmp_path / "config.yaml"
        path.write_text(dump(config, variants=VARIANTS))
        assert run("--config", str(path)) == config


def test_free_mappings_take_single_keys_and_do_not_share_the_default(recipe):
    config = run("--config", recipe, "--model.kwargs.layers", "[2, 2]", "--model.kwargs.block.p", "5e-4")
    assert config.model.kwargs == {"layers": [2, 2], "block": {"p": 5e-4}}
    assert run("--model.kwargs", "{a: 1}").model.kwargs == {"a": 1}
    assert Model().kwargs == {}


BELONGINGS = {"model.name": ("model.kwargs",)}


def test_another_name_on_the_command_line_drops_what_belonged_to_the_old_one_and_says_so(recipe, capsys):
    config = run("--config", recipe, "--method.name", "madry", "--method.smoothing", "0.2", belongings=BELONGINGS)
    assert config.method == Madry(Attack(), 0.2) and config.model == Model("resnet18", {"layers": [1, 1]})
    why = "left out, as belonging to what has another name here; give it again if it holds here too\n"
    said = "method.weight=30.0, method.attack.eps=16/255, method.attack.steps=3"
    assert capsys.readouterr().err == f"train: {said} of {recipe} {why}"
    assert run("--config", recipe, "--method", "madry", "--method.smoothing", "0.2").method == config.method
    capsys.readouterr()

    config = run("--config", recipe, "--model.name", "vit", "--model.kwargs.depth", "3", belongings=BELONGINGS)
    assert config.model == Model("vit", {"depth": 3}) and config.method.weight == 30
    assert capsys.readouterr().err == f"train: model.kwargs.layers=[1, 1] of {recipe} {why}"
    run("--config", recipe, "--model.name", "vit", "--model.kwargs", "{a: 1}", belongings=BELONGINGS)
    assert capsys.readouterr().err == "", "given here, so nothing that was asked for is left out"
    run("--config", recipe, "--model.name", "vit", "--model.kwargs.layers", "[2]", belongings=BELONGINGS)
    assert capsys.readouterr().err == "", "and so here"
    assert run("--config", recipe, "--model.name", "vit").model.kwargs == {"layers": [1, 1]}, "belongs to nothing here"


def test_what_belongs_to_a_variant_goes_with_its_name(recipe, capsys):
    """As a teacher's section goes with the method that learns from it."""
    belongings = {"method.name": ("model",)}
    config = run("--config", recipe, "--method.name", "madry", belongings=belongings)
    assert config.model == Model() and config.method == Madry()
    assert "method.weight" in (said := capsys.readouterr().err) and "model.kwargs" in said
    assert run("--config", recipe, "--method.name", "arat", belongings=belongings).model.kwargs == {"layers": [1, 1]}


@pytest.mark.parametrize(
    "words", [("--method.name", "arat"), ("--model.name", "resnet18"), ("--optim.lr", "1")], ids=str
)
def test_the_same_name_once_more_drops_nothing(words, recipe, capsys):
    config = run("--config", recipe, *words, belongings=BELONGINGS)
    assert config.method.attack == Attack(eps=16 / 255, steps=3) and config.model.kwargs == {"layers": [1, 1]}
    assert capsys.readouterr().err == ""


def test_another_name_than_the_default_drops_what_was_written_for_the_default(tmp_path, capsys):
    """Of the default's method and network, whose names a recipe need not write."""
    (tmp_path / "low.yaml").write_text("method: {weight: 3}\nmodel: {kwargs: {a: 1}}\n")
    low = str(tmp_path / "low.yaml")
    assert run("--config", low).method.weight == 3
    assert run("--config", low, "--method.name", "madry", belongings=BELONGINGS).method == Madry()
    assert run("--config", low, "--model.name", "vit", belongings=BELONGINGS).model == Model("vit")
    assert run("--config", low, "--model.name", Model().name, belongings=BELONGINGS).model.kwargs == {"a": 1}


def test_another_name_in_a_recipe_drops_what_its_base_said_of_the_old_one(recipe, tmp_path, capsys):
    lines = {
        "method": "method: {name: madry, smoothing: 0.5}",
        "again": "method: {name: arat, weight: 2}",
        "model": "model: {name: vit}",
        "twin": "twin: null",
    }
    for name, line in lines.items():
        (tmp_path / f"{name}.yaml").write_text(f"base: small\n{line}\n")
    (tmp_path / "top.yaml").write_text("base: method\nmethod: {name: arat}\n")

    def get(name):
        return run("--config", str(tmp_path / f"{name}.yaml"), belongings=BELONGINGS)

    assert get("method").method == Madry(smoothing=0.5)
    assert get("again").method == Arat(2.0, attack=Attack(eps=16 / 255, steps=3)), "the same name goes on"
    assert get("model").model == Model("vit") and get("model").method == get("small").method
    assert get("twin").twin is None and get("method").twin == Standard(0.1)
    assert get("top").method == Run().method, "each recipe is stacked on those below it, which drop among themselves"
    assert capsys.readouterr().err == "", "a recipe that stands on another says nothing"


def test_only_the_main_process_says_what_is_left_out(recipe, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run("--config", recipe, "--method.name", "madry").method == Madry()
    assert capsys.readouterr().err == ""


def test_the_default_recipe_is_not_read_where_the_command_line_names_what_it_is_about(recipe):
    kwargs = dict(default=recipe, default_is_of="model.name")
    assert run(**kwargs) == run("--config", recipe)
    assert run("--optim.lr", "1", **kwargs).model.name == "resnet18"
    assert run("--model.name", "vit", **kwargs) == Run(model=Model("vit"))
    asked = run("--config", recipe, "--model.name", "vit", belongings=BELONGINGS, **kwargs)
    assert (asked.model, asked.twin) == (Model("vit"), Standard(0.1)), "a recipe that is asked for is read"


def test_the_defaults_of_the_root_belong_to_its_own_variant_only():
    assert run("--method", "arat").method.attack.steps == 7
    assert run("--method", "madry").method.attack.steps == 10


def test_an_optional_variant_can_be_none(recipe, capsys):
    assert run("--twin.name", "standard").twin == Standard()
    assert "left out" not in capsys.readouterr().err
    assert run("--config", recipe, "--twin", "null").twin is None
    assert capsys.readouterr().err.startswith("train: twin.smoothing=0.1 of ")
    assert "method.name: null; wanted one of arat, madry, standard" in message("--method.name", "null")


@pytest.mark.parametrize(
    "args, wanted",
    [
        (("--method.attack.epz", "1/2"), "--method.attack.epz: no such option; did you mean 'method.attack.eps'?"),
        (("--eps", "1/2"), "did you mean 'method.attack.eps'?"),
        (("--learning-rate", "1"), "no such option"),
        (("--method.nam", "madry"), "did you mean 'method.name'?"),
        (("--method.name", "madri"), "--method.name: no method called 'madri'; did you mean 'madry'?"),
        (("--confg", "digits"), "did you mean 'config'?"),
        (("--method.smoothing", "1"), "belongs to method.name madry or standard, and that is arat here"),
        (("--twin.weight", "1"), "belongs to twin.name arat, and that is null here"),
        (("--optim.lr", "fast"), "--optim.lr: got 'fast', wanted number (such as 0.5, 5e-4 or 8/255)"),
        (("--optim.lr", "1/0"), "--optim.lr: got '1/0', wanted number"),
        (("--method.attack.steps", "1.5"), "--method.attack.steps: got '1.5', wanted int"),
        (("--method.attack.norm", "l3"), "--method.attack.norm: got 'l3', wanted linf or l2"),
        (("--optim.betas", "[1]"), "--optim.betas: got '[1]', wanted [number, number]"),
        (("--optim.lr",), "--optim.lr: no value; wanted number"),
        (("--twin.name",), "--twin.name: no value; wanted one of arat, madry, standard"),
        (("--twin", "--optim.lr", "1"), "--twin: no value"),
        (("--optim", "3"), "--optim: is a group of options; give one of them, such as optim.lr"),
        (("digits",), "unexpected 'digits': options are written --name value"),
        (("--config",), "--config: wanted a recipe's name or a YAML file"),
        (("--method.attack.eps", "8"), "method.attack.eps: eps=8.0 is not in (0, 1)"),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line_is_answered_with_the_way_out(args, wanted):
    assert wanted in message(*args)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("methd: {weight: 3}", "methd.weight: no such option; did you mean 'method.weight'?"),
        ("method: {wieght: 3}", "method.wieght: no such option; did you mean 'method.weight'?"),
        ("method: {name: arta}", "method.name: no method called 'arta'; did you mean 'arat'?"),
        ("method: {name: madry, weight: 3}", "method.weight: belongs to method.name arat, and that is madry here"),
        ("method: {attack: {eps: 8}}", "method.attack.eps: eps=8.0 is not in (0, 1)"),
        ("method: {class_path: os.system}", "method.class_path: a YAML cannot import classes"),
        ("model: {kwargs: {a: {class_path: os.getcwd, init_args: {}}}}", "a YAML cannot import classes"),
        ("model: {name: 12}", "model.name: got 12, wanted text"),
        ("optim: 3", "optim: is a group of options"),
        ("optim: {lr: true}", "optim.lr: got True, wanted number"),
        ("[1, 2]", "holds list"),
        ("a: [", "not a YAML file"),
        ("a: !!python/object:os.system {}", "not a YAML file"),
    ],
)
def test_a_mistake_in_a_yaml_names_the_file_and_the_way_out(text, wanted, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    answer = message("--config", str(path))
    assert wanted in answer
    assert str(path) in answer or "eps=8" in answer


def test_a_group_with_every_line_commented_out_is_no_mistake(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("optim:\n  # lr: 3\nmodel: {}\n")
    assert run("--config", str(path)) == Run()


def test_recipes_are_found_by_name_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm_arat.config.files._PACKAGE", tmp_path / "timm_arat")
    for folder in ("recipes", "timm_arat/recipes"):  # a checkout, then a wheel, which wins
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "digits.yaml").write_text(f"output: {folder}")
        assert list(recipes()) == ["digits"]
        assert run("--config", "digits").output == run(default="digits").output == folder
    assert run("--config", "recipes/digits.yaml").output == "recipes"
    assert "--config digts: no such file or recipe; did you mean 'digits'?" in message("--config", "digts")
    assert "did you mean 'digits'?" in message("--config", "elsewhere/digits.yaml")


def test_every_shipped_recipe_is_in_sight():
    assert all(path.is_file() for path in recipes().values())


def test_required_options_are_asked_for_by_name():
    @dataclass(frozen=True)
    class Needy:
        where: str
        many: int = 1

    kwargs: dict[str, Any] = dict(variants={}, prog="p", description="d")
    with pytest.raises(ValueError, match="where: missing; give it in the YAML or as --where"):
        read(Needy, [], **kwargs)
    assert read(Needy, ["here", "--many", "2"], positional="where", **kwargs) == Needy("here", 2)


def test_help_shows_groups_types_current_values_and_every_source_of_description(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        args = "--method.name", "madry", "--method.attack.eps", "16/255", "--method.attack.steps", "3"
        run("--config", recipe, "--help", *args)
    shown = capsys.readouterr().out
    assert end.value.code == 0
    for line in [
        "--method.attack.eps number",
        "Radius in pixels of [0, 1]. [16/255]",
        "gradient steps [3]",
        "Passed to timm.create_model.",
        "[{'layers': [1, 1]}]",
        "--optim.nesterov true or false",
        "one of arat, madry, standard, null",
        "linf or l2",
    ]:
        assert line in shown
    assert "method.weight" not in shown
    assert not any(noise in shown for noise in ("print_config", "CLASS_PATH", "Namespace", "dataclass_factory"))
    assert max(map(len, shown.splitlines())) <= 120


def test_help_needs_no_recipe_and_no_variant(capsys):
    with pytest.raises(SystemExit):
        run("-h")
    shown = capsys.readouterr().out
    assert "--method.attack.steps int" in shown and "[8/255]" in shown
    assert "twin.attack" not in shown


def test_nearest_gives_the_name_or_the_choice():
    assert nearest("resnet19", ["resnet18", "vit"]) == "did you mean 'resnet18'?"
    assert nearest("qqq", ["b", "a"]) == "choose from a, b"


@cli
def _refused() -> None:
    raise ValueError("came this,\n  wanted that")


@cli
def _broken() -> None:
    raise RuntimeError("ours")


@cli
def _stopped() -> None:
    raise KeyboardInterrupt


def test_a_mistake_of_the_user_ends_in_one_line_and_code_2(capsys, monkeypatch):
    monkeypatch.delenv("TIMM_ARAT_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end:
        _refused()
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: came this, wanted that"
    monkeypatch.setenv("TIMM_ARAT_DEBUG", "1")
    with pytest.raises(ValueError):
        _refused()


def test_our_own_mistakes_keep_their_traceback_and_ctrl_c_is_130():
    with pytest.raises(RuntimeError):
        _broken()
    with pytest.raises(SystemExit) as end:
        _stopped()
    assert end.value.code == 130


def test_configurations_travel_to_workers(recipe):
    config = run("--config", recipe)
    assert pickle.loads(pickle.dumps(config)) == config
    assert replace(config, output="there").output == "there"


def test_reading_imports_neither_torch_nor_accelerate():
    """So that a typo is answered at once."""
    code = "import sys, timm_arat.config; print({'torch', 'accelerate', 'datasets', 'timm'} & set(sys.modules))"
    # The package's own __init__ brings torch; a stand-in shows what `config` alone brings.
    bare = f"import sys, types; m = sys.modules['timm_arat'] = types.ModuleType('m'); m.__path__ = [{PACKAGE!r}]"
    done = subprocess.run([sys.executable, "-c", f"{bare}\n{code}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_recipe_stands_on_its_base(tmp_path):
    (tmp_path / "low.yaml").write_text("method: {name: arat, weight: 3}\nepochs: 7\n")
    (tmp_path / "high.yaml").write_text("base: low\nmethod: {name: madry}\nseed: 4\n")
    (tmp_path / "ring.yaml").write_text("base: ring\n")
    from timm_arat.engine.config import TrainConfig
    from timm_arat.engine.recipe import VARIANTS
    from timm_arat.methods import MadryConfig

    def get(name):
        return read(TrainConfig, ["--config", str(tmp_path / name)], variants=VARIANTS, prog="x", description="")

    config = get("high.yaml")
    assert (config.epochs, config.seed, config.method) == (7, 4, MadryConfig())
    assert get("low.yaml").method.weight == 3
    with pytest.raises(ValueError, match="cannot stand on itself"):
        get("ring.yaml")


def train_config(*words: str, **kwargs: Any) -> Any:
    from timm_arat.engine.config import TrainConfig
    from timm_arat.engine.recipe import BELONGINGS, VARIANTS

    return read(TrainConfig, words, variants=VARIANTS, belongings=BELONGINGS, prog="x", description="", **kwargs)


@pytest.mark.parametrize("recipe", [(), ("--config", "cifar10_resnet20")], ids=str)
def test_an_eps_of_one_norm_is_not_taken_for_another(recipe):
    with pytest.raises(ValueError, match="eps must be given for norm='l2'"):
        train_config(*recipe, "--attack.norm", "l2")
    assert train_config(*recipe, "--attack.norm", "l2", "--attack.eps", "0.5").attack.radius == 0.5
    assert train_config(*recipe, "--attack.norm", "linf").attack.radius == 8 / 255


def test_what_a_recipe_says_of_its_method_data_or_network_goes_with_the_name(capsys):
    from timm_arat import PGD
    from timm_arat.engine.config import TrainConfig
    from timm_arat.methods import TRADESConfig

    cifar = train_config("--config", "cifar10_resnet20")
    trades = train_config("--config", "cifar10_resnet20_trades")
    assert trades == replace(cifar, method=TRADESConfig(beta=6.0)), "the threat belongs to no method"
    assert trades.attack == PGD(eps=8 / 255, steps=3)
    assert train_config("--config", "cifar10_resnet20", "--method.name", "trades") == trades
    assert capsys.readouterr().err.startswith("x: method.weight=30 of cifar10_resnet20 left out, ")

    folder = train_config("--config", "cifar10_resnet20", "--data.name", "folder", "--data.image_size", "32")
    assert (folder.data.root, folder.data.download, folder.data.image_size) == (None, False, 32)
    assert (folder.data.crop, folder.data.val_size) == (cifar.data.crop, cifar.data.val_size)
    assert capsys.readouterr().err.startswith("x: data.root=data, data.download=True of cifar10_resnet20 left out, ")

    vit = train_config("--config", "digits", "--model.name", "test_vit").model
    assert (vit.name, vit.kwargs) == ("test_vit", {})
    other = train_config("--config", "digits", "--data.name", "folder")
    assert (other.data.image_size, other.data.in_chans, other.model.kwargs) == (
        None,
        3,
        {"layers": [1, 1], "channels": [16, 32]},
    )

    assert train_config(default="digits", default_is_of="data.name") == train_config("--config", "digits")
    alone = train_config("--data.name", "folder", default="digits", default_is_of="data.name")
    assert alone == replace(TrainConfig(), data=replace(TrainConfig().data, name="folder"))


def test_a_run_s_config_is_read_back_and_built_on(tmp_path):
    """The resolved YAML writes every setting out, those of the method, the twin and the network too."""
    from timm_arat import PGD
    from timm_arat.engine.config import ModelConfig, TrainConfig, ValidationConfig
    from timm_arat.engine.recipe import VARIANTS
    from timm_arat.methods import ARATConfig, MadryConfig, StandardConfig, TRADESConfig

    config = TrainConfig(
        model=ModelConfig("resnet18", kwargs={"drop_rate": 0.1}),
        attack=PGD(norm="l2", eps=0.5, steps=3),
        method=ARATConfig(weight=3.0, layers=("layer1", "layer2")),
        twin=StandardConfig(0.1),
        validation=ValidationConfig(steps=3, images=100, select="robust"),
    )
    written = tmp_path / "config.yaml"
    written.write_text(dump(config, variants=VARIANTS))
    assert train_config("--config", str(written)) == config
    trades = train_config("--config", str(written), "--method.name", "trades", "--twin.name", "madry")
    assert trades == replace(config, method=TRADESConfig(), twin=MadryConfig())


def test_every_bundled_recipe_is_readable_and_survives_a_round_trip(tmp_path):
    from timm_arat.config import dump, recipes
    from timm_arat.engine.config import TrainConfig
    from timm_arat.engine.recipe import VARIANTS

    for name in recipes():
        config = read(TrainConfig, ["--config", name], variants=VARIANTS, prog="x", description="")
        (tmp_path / "again.yaml").write_text(dump(config, variants=VARIANTS))
        again = ["--config", str(tmp_path / "again.yaml")]
        assert read(TrainConfig, again, variants=VARIANTS, prog="x", description="") == config, name
