"""What somebody asked for: one dotted key and its value, and where it was written."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm_arat.config.options import Option

_IMPORTING = ("class_path", "init_args", "dict_kwargs")  # jsonargparse's keys for "import this and call it"


@dataclass(frozen=True)
class Setting:
    """One value: from a YAML file called `source`, or a word of the command line (None where no word followed)."""

    key: str
    value: Any
    source: str | None = None

    @property
    def where(self) -> str:
        """For messages: `recipes/digits.yaml: data.name` or `--data.name`."""
        return f"{self.source}: {self.key}" if self.source else f"--{self.key}"


def from_words(words: Sequence[str], positional: str | None) -> list[Setting]:
    """`--key value`, `--key=value`, `--flag` and one bare word, the `positional`. ValueError for other words."""
    found: list[Setting] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")  # people write --dry-run
        if word == "-c":
            key = "config"
        elif not word.startswith("--"):
            if positional is None or any(setting.key == positional for setting in found):
                raise ValueError(f"unexpected {word!r}: options are written --name value")
            found.append(Setting(positional, word))
            continue
        if not equals and rest and not rest[0].startswith("--"):
            equals, value = "=", rest.pop(0)
        if key == "config" and not value:
            raise ValueError("--config: wanted a recipe's name or a YAML file")
        found.append(Setting(key, value if equals else None))
    return found


def from_yaml(
    tree: Mapping[Any, Any], source: str, known: Mapping[str, Option], variants: Collection[str]
) -> list[Setting]:
    """The leaves of a YAML mapping, as deep as `known` options go. ValueError if it asks for an import.

    `variants` are fields for which `null` says something; of another group it means that it is left as it is.
    """
    free = {key for key, option in known.items() if option.free}
    parents = {key[: dot.start()] for key in known for dot in re.finditer(r"\.", key)}
    return _leaves(tree, "", source, free, parents.difference(variants))


def _leaves(
    tree: Mapping[Any, Any], prefix: str, source: str, free: Collection[str], parents: Collection[str]
) -> list[Setting]:
    found: list[Setting] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in free:
            _refuse_imports(key, value, source)
            found.append(Setting(key, value, source))
        elif isinstance(value, Mapping):
            _refuse_imports(key, value, source)
            found += _leaves(value, f"{key}.", source, free, parents)
        elif value is None and key in parents:
            continue  # a group all of whose lines are commented out
        else:
            found.append(Setting(key, value, source))
    return found


def _refuse_imports(key: str, value: Any, source: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in _IMPORTING:
                raise ValueError(f"{source}: {key}.{name}: a YAML cannot import classes; choose by name")
            _refuse_imports(f"{key}.{name}", inner, source)
