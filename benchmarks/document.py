"""Blocks of a Markdown document that a command writes, between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

import re
from collections.abc import Iterable
from pathlib import Path


def check_block(document: Path, name: str) -> None:
    """ValueError unless `document` has the marks of block `name`."""
    begin, end = _marks(name)
    text = document.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{document} has no lines {begin} and {end} to write between")


def write_block(document: Path, name: str, lines: Iterable[str]) -> None:
    """Put `lines` between the marks of block `name`; what stands around them is left alone."""
    check_block(document, name)
    begin, end = _marks(name)
    block = "\n".join([begin, "", *lines, "", end])
    pattern = f"{re.escape(begin)}.*{re.escape(end)}"
    document.write_text(re.sub(pattern, lambda _: block, document.read_text(), flags=re.DOTALL))


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
