"""Where recipes lie, and how the one a user names is found and read."""

from pathlib import Path
from typing import Any

from jsonargparse import get_loader
from yaml import YAMLError

from timm_arat.names import nearest

_PACKAGE = Path(__file__).parents[1]
_COMPARISON = "compare_"


def recipes() -> dict[str, Path]:
    """The recipes that came with timm_arat, by name: beside the package in a checkout, inside it in a wheel."""
    return {name: path for name, path in _bundled().items() if not name.startswith(_COMPARISON)}


def comparisons() -> dict[str, Path]:
    """The comparisons that came with timm_arat, lists of recipes that lie beside them, by name: `compare_...`."""
    return {name: path for name, path in _bundled().items() if name.startswith(_COMPARISON)}


def _bundled() -> dict[str, Path]:
    folder = _PACKAGE / "recipes"
    if not folder.is_dir():
        folder = _PACKAGE.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The YAML file called `name`: a path, or the bare name, from any directory, of one that came with timm_arat.

    Raises:
        ValueError: there is none.
    """
    if Path(name).is_file():
        return Path(name)
    known = _bundled()
    if name in known:
        return known[name]
    raise ValueError(f"--config {name}: no such file or recipe; {nearest(Path(name).stem, known)}")


def chain(name: str) -> list[tuple[Path, dict[str, Any]]]:
    """The recipe `name` and the recipes under it, which each names by `base:`, the lowest first.

    A base is a file beside its recipe, a path, or a bundled recipe's name. ValueError for a ring or a missing file.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    while name:
        beside = found[-1][0].parent / f"{name}.yaml" if found else Path()
        path = beside if beside.is_file() else find(name)
        if any(path.samefile(other) for other, _ in found):
            raise ValueError(f"{found[-1][0]}: base: {name}: a recipe cannot stand on itself")
        tree = load(path)
        name = tree.pop("base", "") or ""
        if not isinstance(name, str):
            raise ValueError(f"{path}: base: {name!r}: wanted a recipe's name or file")
        found.append((path, tree))
    return found[::-1]


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with `5e-4` a number. ValueError, naming the file, if it is not one."""
    try:
        tree = get_loader("yaml")(path.read_text(encoding="utf-8"))
    # Besides YAML's own errors, the loaders fail on odd documents as Python does: a lone `?`, a date of no calendar.
    except (YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds {type(tree).__name__} {str(tree)[:40]!r}; wanted lines `option: value`")
    return tree
