"""Results for a person to read."""

import math
from collections.abc import Sequence

from timm_arat.evaluation._autoattack import ATTACKS, STANDARD
from timm_arat.evaluation._robustness import Robustness, eps_text
from timm_arat.evaluation._score import cell, share_text

HEADER = ("model", "clean", "PGD-20", "AutoAttack")


def table(*results: Robustness, per_class: bool = False) -> str:
    """Plain text: one row a model, accuracies in % with half of their 95 % interval and n; then what belongs to them.

    Threats and data sets are named below, once if they are the same for all; then AutoAttack's steps and the warnings.
    per_class: a table of each result's classes follows, see `per_class_table`.
    """
    rows = [HEADER, *((r.model, cell(r.clean), cell(r.pgd), cell(r.autoattack) + _mark(r)) for r in results)]
    lines = aligned(rows)
    lines += [f"AutoAttack*: {what}" for what in dict.fromkeys(r.attacks["autoattack"] for r in results if _mark(r))]
    lines += [f"{', '.join(names)}: {what}" if len(names) < len(results) else what for what, names in _shared(results)]
    for r in results:
        if r.data.note:
            lines.append(f"{r.model}: {r.data.note}")
        if r.autoattack:
            steps = ", ".join(f"{each} {100 * r.scores[each].accuracy:.1f}" for each in ATTACKS)
            lines.append(f"{r.model}: right after {steps}")
        lines += [f"{r.model}: WARNING: {warning}" for warning in r.warnings]
    if per_class:
        lines += [line for r in results for line in ("", per_class_table(r))]
    return "\n".join(lines)


def per_class_table(result: Robustness) -> str:
    """Plain text: a row a class, by its name where the result has names, the worst under the strongest attack first.

    A class without an image is left out, and counted below.
    """
    scores = [result.clean, result.pgd, result.autoattack]
    strongest = [score for score in scores if score][-1]

    def worst_first(number: int) -> tuple[float, int]:
        right, n = strongest.per_class[number]
        return right / n if n else math.inf, number

    every = range(len(strongest.per_class))
    shown = [each for each in every if any(score and score.per_class[each][1] for score in scores)]
    rows: list[Sequence[str]] = [("class", *HEADER[1:])]
    for number in sorted(shown, key=worst_first):
        name = result.class_names[number] if number < len(result.class_names) else str(number)
        rows.append((name, *(share_text(*score.per_class[number]) if score else "-" for score in scores)))
    lines = [f"{result.model} by class, the worst under the strongest attack first:", *aligned(rows)]
    if left_out := len(every) - len(shown):
        lines.append(f"{left_out} {'class has' if left_out == 1 else 'classes have'} no image among these")
    return "\n".join(lines)


def _mark(result: Robustness) -> str:
    """A star if the AutoAttack of this result is not the standard version."""
    version = result.attacks.get("autoattack", STANDARD)
    return "" if version.startswith(STANDARD) else "*"


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Lines of columns, with a rule below the first; right: all columns but the first end, rather than begin, alike."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width) for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _shared(results: Sequence[Robustness]) -> list[tuple[str, list[str]]]:
    """What was measured, with the models for which it holds."""
    found: dict[str, list[str]] = {}
    for r in results:
        images = f"{r.data.name} {r.data.split}".strip()
        subset = (
            f", AutoAttack on {r.data.autoattack_images} stratified images (seed {r.data.seed})"
            if r.data.stratified
            else ""
        )
        what = f"accuracy in % with 95 % interval; {r.norm} eps={eps_text(r.eps)}; {images}{subset}; seed {r.seed}"
        found.setdefault(what, []).append(r.model)
    return list(found.items())
