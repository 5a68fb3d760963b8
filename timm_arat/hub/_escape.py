"""Text of others in Markdown: it reads as it was written, and is neither HTML nor a heading, a table or a link."""

import re


def inline(text: str) -> str:
    """`text` for a line of Markdown or the cell of a table."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]|~#$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # between letters it is one already
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"^([-+=])", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", text)


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code, within a fence that it does not hold."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
