"""`--help` for a person: grouped, one line an option, with the value it would have now."""

import inspect
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from timm_arat.config.options import Option, describe
from timm_arat.config.variants import Variant

_COLUMN = 34  # where descriptions begin


def help_text(
    root: type,
    table: Mapping[str, Option],
    values: Mapping[str, Any],
    groups: Sequence[Variant],
    names: Mapping[str, str | None],
    *,
    prog: str,
    description: str,
    default: str | None,
    positional: str | None,
    bundled: Collection[str],
) -> str:
    """Usage, description, then every option of `table` under its group, with its value after the chosen recipe."""
    width = max(80, min(120, shutil.get_terminal_size().columns))
    bare = f" {positional.upper()}" if positional else ""
    lines = [
        f"usage: {prog}{bare} [--config FILE] [--OPTION VALUE ...]",
        "",
        *textwrap.wrap(description, width),
        "",
        *_row(
            "--config FILE",
            f"a YAML file, or one of {', '.join(bundled)}" if bundled else "a YAML file",
            default or "",
            width,
        ),
        *_row("--help", "this text, for the recipe and names given", "", width),
    ]
    variants = {group.field: group for group in groups}
    hints = get_type_hints(root)
    tops = {field.name for field in fields(root) if field.name in variants or is_dataclass(hints[field.name])}
    lines += [line for key in table if key.split(".")[0] not in tops for line in _option(key, table, values, width)]
    for top in (field.name for field in fields(root) if field.name in tops):
        if top in variants:
            name = names[top]
            cls = variants[top].classes[name] if name else None
            choices = [*variants[top].classes, *(["null"] if variants[top].optional else [])]
            lines += ["", *_heading(top, cls, width)]
            lines += _row(
                f"--{top}.name NAME", f"one of {', '.join(choices)}; each has options of its own", name or "null", width
            )
        else:
            lines += ["", *_heading(top, hints[top], width)]
        lines += [line for key in table if key.startswith(f"{top}.") for line in _option(key, table, values, width)]
    return "\n".join(lines)


def _heading(name: str, cls: Any, width: int) -> list[str]:
    doc = (inspect.getdoc(cls) or "").partition("\n\n")[0] if cls else ""
    if cls and doc.startswith(f"{cls.__name__}("):
        doc = ""  # dataclass writes its signature there when nobody wrote a docstring
    return textwrap.wrap(f"{name}: {' '.join(doc.split())}", width)


def _option(key: str, table: Mapping[str, Option], values: Mapping[str, Any], width: int) -> list[str]:
    value = "required" if values[key] is MISSING else _shown(values[key])
    return _row(f"--{key} {describe(table[key].hint)}", table[key].doc, value, width)


def _row(left: str, text: str, value: str, width: int) -> list[str]:
    text = f"{text} [{value}]".lstrip() if value else text
    indent = " " * _COLUMN
    body = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    if len(left) + 4 > _COLUMN:
        return [f"  {left}", *body]
    return [f"  {left}".ljust(_COLUMN) + body[0].lstrip(), *body[1:]]


def _shown(value: Any) -> str:
    """8/255 rather than 0.03137254901960784."""
    if isinstance(value, float) and len(repr(value)) > 8 and round(value * 255) / 255 == value:
        return f"{round(value * 255)}/255"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
