"""The floors of the package: what each part may import, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import timm_arat
from timm_arat.methods import CONFIGS, method_class

PACKAGE = Path(timm_arat.__file__).parent

# What each part of the package may import besides itself; see docs/architecture.md. A new part needs a row.
GROUND = {"modes", "fold", "precision", "compiling", "files", "generators", "names"}
TENSORS = GROUND | {"norm", "taps", "attacks", "losses", "pixels"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"_register"},
    "_register": {"models"},
    **dict.fromkeys(GROUND, set()),
    **dict.fromkeys(TENSORS - GROUND, GROUND),
    "models": TENSORS,
    "methods": TENSORS | {"models"},
    "analysis": TENSORS | {"models", "methods"},
    "config": TENSORS | {"models", "methods"},
    "data": TENSORS | {"models", "methods"},
    "evaluation": TENSORS | {"models", "methods", "data"},
    "hub": TENSORS | {"models", "methods", "data", "evaluation"},
    "engine": TENSORS | {"models", "methods", "data", "evaluation", "hub", "config", "analysis"},
    "demo": TENSORS | {"models", "methods", "data", "evaluation", "hub"},
    "task": TENSORS | {"models", "methods"},
    "diagnose": TENSORS | {"engine", "config", "evaluation", "methods", "data", "analysis"},
    "train": {"engine", "config", "evaluation"},
    "compare": TENSORS | {"models", "methods", "data", "evaluation", "config", "engine"},
}
# Commands put the parts together.
COMMANDS = {"evaluation/__main__.py": {"config"}, "hub/__main__.py": {"config"}, "demo/__main__.py": {"config"}}


def files() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def part_of(file: str) -> str:
    return Path(file).parts[0].removesuffix(".py")


def imported(file: str) -> set[str]:
    """Full names of everything that a file imports, at any depth, type checking included."""
    package = ["timm_arat", *Path(file).parent.parts]
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return found


def own_parts(file: str) -> set[str]:
    names = {name.split(".")[1] for name in imported(file) if name.startswith("timm_arat.")}
    parts = {part_of(each) for each in files()} - {"__init__"}
    exported = names - parts  # `from timm_arat import PGD`: a name of a part higher up, through the front door
    return (names & parts) | ({"the front door"} if exported - {"__version__"} else set())


@pytest.mark.parametrize("file", files())
def test_imports_go_down_only(file: str) -> None:
    part = part_of(file)
    assert part in MAY_IMPORT, f"{file}: a new part of the package needs a floor"
    allowed = MAY_IMPORT[part] | {part} | COMMANDS.get(file, set())
    assert own_parts(file) <= allowed


def test_no_part_imports_the_tools_beside_the_package() -> None:
    """A wheel does not hold them."""
    tools = {"benchmarks", "recipes", "tests"}
    assert not [file for file in files() if {name.split(".")[0] for name in imported(file)} & tools]


@pytest.mark.parametrize("file", [file for file in files() if part_of(file) != "engine"])
def test_accelerate_lives_in_the_engine_only(file: str) -> None:
    assert not any(name.split(".")[0] == "accelerate" for name in imported(file))


def test_the_reader_of_imports_sees_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "arat.py").write_text(
        "import accelerate.utils as u\nfrom . import _base\nfrom .. import engine\n"
        "def f():\n    from ..norm import x\n    importlib.import_module('timm_arat.hub')\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert imported("methods/arat.py") == {
        "accelerate.utils",
        "timm_arat.methods._base",
        "timm_arat.engine",
        "timm_arat.norm.x",
        "timm_arat.hub",
    }


def in_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_reading_a_configuration_loads_neither_torch_nor_timm() -> None:
    loaded = in_new_process(
        "import sys, timm_arat\n"
        "from timm_arat.engine.recipe import read_recipe\n"
        "from timm_arat import PGD; PGD()\n"
        "print(*({'torch', 'timm', 'accelerate'} & set(sys.modules)))"
    )
    assert loaded == ""


@pytest.mark.parametrize(
    "imports",
    [
        "import timm, timm_arat",
        "import timm_arat; from timm.layers import DropPath",
        "import timm_arat.models",
        "import timm_arat.norm",  # imports timm, which registers the models, which use it
        "import timm_arat.taps",
        "from timm_arat import evaluate, ARAT",
    ],
)
def test_models_are_registered_whatever_is_imported_first(imports: str) -> None:
    code = (
        f"{imports}\nimport sys, timm\nprint(timm.is_model('resnet20_cifar'), 'resnet18_cifar' in timm.list_models())"
    )
    assert in_new_process(code) == "True True"


def test_public_names() -> None:
    assert sorted(timm_arat.__all__) == [
        *sorted(["PGD", "Robustness", *(method_class(name).__name__ for name in CONFIGS)]),
        "convert_split_norm",
        "evaluate",
        "export",
        "in_pixels",
        "list_robust",
        "merge_split_norm",
        "norm_branch",
        "publish",
        "register",
    ]
    for name in timm_arat.__all__:
        assert callable(getattr(timm_arat, name)), name
    assert set(timm_arat.__all__) <= set(dir(timm_arat))


def test_the_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    assert timm_arat.__version__ == version("timm_arat")
