"""The answer to a mistyped name: those nearest to it, or the list to choose from."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], most: int = 1) -> str:
    """The half of an error message that names the way out: `did you mean 'method.attack.eps'?`, else `choose from ...`.

    Of dotted names the end counts as much as the whole, so that `eps` and `attack.epz` both find `method.attack.eps`.

    Args:
        name: What was typed.
        names: What could have been meant.
        most: How many of them are named.
    """
    names = list(names)
    # Longest ends first: the most of what was typed that a known name can match.
    ends = {_end(known, depth): known for depth in (1, 2, 3) for known in reversed(names)} | {n: n for n in names}
    exact = [known for known in names if known.endswith(f".{name}")]
    close = exact or [ends[end] for end in difflib.get_close_matches(name, list(ends), n=most, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(map(repr, list(dict.fromkeys(close))[:most]))}?"
    shown = ", ".join(sorted(names)[:20]) + (", ..." if len(names) > 20 else "")
    return f"choose from {shown}" if names else "there is none to choose from"


def _end(dotted: str, depth: int) -> str:
    return ".".join(dotted.split(".")[-depth:])
