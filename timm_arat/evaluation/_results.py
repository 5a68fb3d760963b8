"""What the JSONs of all results share: how they are written, read again, and checked field by field."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..files import write_text


def write(path: str | Path, fields: dict[str, Any]) -> None:
    """Write a result for machines and people, a field a line and so a list of numbers; whole or not at all."""
    text = json.dumps(fields, indent=1)
    write_text(Path(path), re.sub(r"\[[\d\s,.+e-]*\]", lambda numbers: " ".join(numbers.group().split()), text) + "\n")


@contextmanager
def reading(path: str | Path, function: str) -> Iterator[None]:
    """Inside, whatever a file of other content raises is a ValueError that names it and the `function` to call anew."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is not a result of timm_arat.{function} ({error}): evaluate again") from error


def check_format(found: Any, wanted: str) -> None:
    """ValueError unless a result says that it has the format `wanted`."""
    if found != wanted:
        raise ValueError(f"format is {found!r}, wanted {wanted!r}")


def check_types(result: Any) -> None:
    """ValueError for a field of another type than the dataclass says, or a number that is none."""
    for name, hint in get_type_hints(type(result)).items():
        value = getattr(result, name)
        kind, parts = get_origin(hint) or hint, get_args(hint)
        if kind is dict:
            right = isinstance(value, dict) and all(_is(each, parts[1]) for each in value.values())
        elif kind is tuple:
            right = isinstance(value, tuple) and all(_is(each, parts[0]) for each in value)
        elif kind is UnionType:
            right = any(_is(value, part) for part in parts)
        elif kind is Literal:
            right = value in parts
        else:
            right = _is(value, kind)
        if not right:
            raise ValueError(f"{name} is {str(value)[:40]!r}, wanted {getattr(hint, '__name__', hint)}")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
