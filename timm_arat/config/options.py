"""A tree of dataclasses seen as a flat table of dotted options, and built again from their values."""

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import register_type

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One field of a configuration. `default` is `MISSING` where a value must be given."""

    hint: Any
    default: Any
    doc: str

    @property
    def free(self) -> bool:
        """Whether it is a mapping with keys of the user's choice, such as keyword arguments."""
        return any(get_origin(kind) is dict for kind in (self.hint, *get_args(self.hint)))

    def from_word(self, word: str | None) -> Any:
        """The value that a word of the command line means; None, no word, is a bare flag. ValueError if none."""
        if word is None:
            if self.hint is not bool:
                raise ValueError(f"no value; wanted {describe(self.hint)}")
            return True
        return _checked(self.hint, word, lambda parser: parser.parse_args([f"--value={word}"]))

    def from_yaml(self, value: Any) -> Any:
        """The value that one read from YAML means. ValueError if none."""
        if isinstance(value, bool) and get_origin(self.hint) is Literal:
            # YAML reads on, yes, off and no as booleans, and these are words here.
            meant = ("on", "yes") if value else ("off", "no")
            value = next((word for word in meant if word in get_args(self.hint)), value)
        return _checked(self.hint, value, lambda parser: parser.parse_object({"value": value}, defaults=False))


def options(
    cls: type, prefix: str = "", instance: Any = MISSING, skip: Mapping[str, Any] = types.MappingProxyType({})
) -> dict[str, Option]:
    """Every leaf field of `cls` by dotted name, nested dataclasses included; defaults from `instance` where given."""
    hints, docs = get_type_hints(cls), _docs(cls)
    table: dict[str, Option] = {}
    for field in dataclasses.fields(cls):
        if not field.init or field.name in skip:
            continue
        key, hint = prefix + field.name, hints[field.name]
        default = default_of(field) if instance is MISSING else getattr(instance, field.name)
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            table |= options(hint, f"{key}.", MISSING if _is_plain(hint, default) else default)
        else:
            table[key] = Option(hint, default, docs.get(field.name, ""))
    return table


def _is_plain(cls: type, default: Any) -> bool:
    """Whether `default` is what `cls()` makes: what it fills in by other fields, an eps by the norm, is open."""
    needed = [field for field in dataclasses.fields(cls) if field.init and default_of(field) is MISSING]
    return not needed and bool(default == cls())


def build(cls: type[T], values: Mapping[str, Any], prefix: str = "", **given: Any) -> T:
    """`cls` from dotted values; `given` are fields built elsewhere. A ValueError of its own check names the option."""
    hints = get_type_hints(cls)
    arguments = dict(given)
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]  # T is a dataclass
    for name in names:
        if name in given:
            continue
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = build(hints[name], values, f"{prefix}{name}.")
        elif values[prefix + name] is MISSING:
            raise ValueError(f"{prefix}{name}: missing; give it in the YAML or as --{prefix}{name}")
        else:
            arguments[name] = values[prefix + name]
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{_blamed(str(error), names, prefix)}: {error}") from error


def describe(hint: Any) -> str:
    """A type as a person would write it: `int or null`, `'l2' or 'linf'`, `number`, `number, ...`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(kind) for kind in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (tuple, list):
        return f"[{', '.join('...' if kind is ... else describe(kind) for kind in args)}]"
    names = {float: "number", bool: "true or false", str: "text", int: "int", type(None): "null", dict: "{key: value}"}
    return names.get(origin or hint, getattr(hint, "__name__", str(hint)))


class _Number(float):
    """What `float` is read as: also a fraction, `8/255`."""


def _number(value: Any) -> float:
    numerator, slash, denominator = str(value).partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except ZeroDivisionError as error:
        raise ValueError(f"{value} divides by zero") from error


register_type(_Number, float, _number, type_check=lambda value, _: isinstance(value, float))


def _checked(hint: Any, value: Any, parse: Callable[[ArgumentParser], Any]) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=_with_fractions(hint))
    example = " (such as 0.5, 5e-4 or 8/255)" if hint is float else ""
    wanted = f"got {value!r}, wanted {describe(hint)}{example}"
    try:
        found = parse(parser)["value"]
    except ArgumentError as error:
        raise ValueError(wanted) from error
    # To the parser null is "not given", of whatever type.
    if found is None and hint is not Any and type(None) not in get_args(hint):
        raise ValueError(wanted)
    return found


def _with_fractions(hint: Any) -> Any:
    """`hint` with `float` replaced, wherever it stands in it, by the number type that reads fractions."""
    origin, args = get_origin(hint), tuple(_with_fractions(kind) for kind in get_args(hint))
    if hint is float:
        return _Number
    if origin in (Union, types.UnionType):
        return Union[args]  # noqa: UP007  # made at run time
    return hint if origin in (None, Literal) else origin[args]


def default_of(field: Field[Any]) -> Any:
    """What `field` is when nobody says; `MISSING` if it must be said."""
    return field.default if field.default_factory is MISSING else field.default_factory()


@functools.cache
def _docs(cls: type) -> dict[str, str]:
    """One line a field: from the docstring's Args or Attributes, a string below the field, or a comment beside it."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= dict(re.findall(r"^    (\w+) *:[^#\n]*# *(.+)$", inspect.getsource(base), re.MULTILINE))
            parsed = docstring_parser.parse_from_object(base).params
            docs |= {each.arg_name: " ".join(each.description.split()) for each in parsed if each.description}
    return docs


def _blamed(message: str, names: list[str], prefix: str) -> str:
    """The option that an error of a dataclass is about: the field it names first as `name=value`, or at all."""
    for pattern in (r"\b{}=", r"\b{}\b"):
        found = {match.start(): name for name in names if (match := re.search(pattern.format(name), message))}
        if found:
            return prefix + found[min(found)]
    return prefix.rstrip(".") or "configuration"
