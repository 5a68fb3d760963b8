"""Command lines that begin with a list, such as `python -m benchmarks.report runs/a runs/b --into docs/results.md`."""

import json
from collections.abc import Sequence
from itertools import takewhile


def with_list(option: str, words: Sequence[str]) -> list[str]:
    """`words` with those before the first `--option` gathered into `--option '[...]'`, which is what `read` takes."""
    first = list(takewhile(lambda word: not word.startswith("-"), words))
    return [*([f"--{option}", json.dumps(first)] if first else []), *words[len(first) :]]
