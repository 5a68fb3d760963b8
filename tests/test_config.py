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


def test_another_name_keeps_what_both_have_and_says_what_it_leaves(recipe, capsys):
    config = run("--config", recipe, "--method.name", "madry", "--method.smoothing", "0.2")
    assert config.method == Madry(Attack(eps=16 / 255, steps=3), 0.2)
    assert "'madry' now, which has no method.weight: left out" in capsys.readouterr().err


def test_the_defaults_of_the_root_belong_to_its_own_variant_only():
    assert run("--method", "arat").method.attack.steps == 7
    assert run("--method", "madry").method.attack.steps == 10


def test_an_optional_variant_can_be_none(recipe, capsys):
    assert run("--config", recipe, "--twin", "null").twin is None
    assert run("--twin.name", "standard").twin == Standard()
    assert "left out" not in capsys.readouterr().err
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
        run("--config", recipe, "--help", "--method.name", "madry")
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
    from timm_arat.engine.config import VARIANTS, TrainConfig
    from timm_arat.methods import MadryConfig

    def get(name):
        return read(TrainConfig, ["--config", str(tmp_path / name)], variants=VARIANTS, prog="x", description="")

    config = get("high.yaml")
    assert (config.epochs, config.seed, config.method) == (7, 4, MadryConfig())
    assert get("low.yaml").method.weight == 3
    with pytest.raises(ValueError, match="cannot stand on itself"):
        get("ring.yaml")


def test_a_method_keeps_its_own_default_whatever_name_stood_there_before(tmp_path, capsys):
    """The objective of the attack: ce, but for TRADES kl; a run's config.yaml has it written out."""
    from timm_arat import PGD
    from timm_arat.engine.config import VARIANTS, TrainConfig
    from timm_arat.methods import ARATConfig, TRADESConfig

    def get(name, *words):
        return read(TrainConfig, ["--config", str(name), *words], variants=VARIANTS, prog="x", description="").method

    trades = TRADESConfig(PGD(eps=8 / 255, steps=3, loss="kl"))
    assert get("cifar10_resnet20_trades") == get("cifar10_resnet20", "--method.name", "trades") == trades
    assert get("cifar10_resnet20_trades", "--method.attack.loss", "ce").attack.loss == "ce"
    capsys.readouterr()

    written = tmp_path / "config.yaml"
    written.write_text(dump(TrainConfig(method=ARATConfig(PGD(steps=3))), variants=VARIANTS))
    (tmp_path / "high.yaml").write_text("base: config\nmethod: {name: trades}\n")
    (tmp_path / "ce.yaml").write_text("base: config\nmethod: {name: trades, attack: {loss: ce}}\n")
    assert get(written, "--method.name", "trades") == trades
    assert "no method.weight, " in (said := capsys.readouterr().err)
    assert said.endswith(": left out; the default method.attack.loss kl: taken\n")
    assert get(tmp_path / "high.yaml") == trades
    assert get(tmp_path / "ce.yaml").attack.loss == "ce"
    assert get(written, "--method.name", "trades", "--method.attack.loss", "ce").attack.loss == "ce"
    assert get(written, "--method.name", "madry").attack == PGD(steps=3)

    written.write_text(dump(TrainConfig(method=replace(trades, attack=PGD(steps=3))), variants=VARIANTS))
    assert get(written).attack.loss == "ce"  # the same name: what is written stands
    written.write_text(dump(TrainConfig(method=trades), variants=VARIANTS))
    assert get(written, "--method.name", "madry").attack.loss == "ce"


def test_every_bundled_recipe_is_readable_and_survives_a_round_trip(tmp_path):
    from timm_arat.config import dump, recipes
    from timm_arat.engine.config import VARIANTS, TrainConfig

    for name in recipes():
        config = read(TrainConfig, ["--config", name], variants=VARIANTS, prog="x", description="")
        (tmp_path / "again.yaml").write_text(dump(config, variants=VARIANTS))
        again = ["--config", str(tmp_path / "again.yaml")]
        assert read(TrainConfig, again, variants=VARIANTS, prog="x", description="") == config, name
