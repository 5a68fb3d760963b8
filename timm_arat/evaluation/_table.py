"""Results for a person to read."""

from collections.abc import Sequence

from timm_arat.evaluation._autoattack import ATTACKS, STANDARD
from timm_arat.evaluation._robustness import Robustness, eps_text
from timm_arat.evaluation._score import Score

HEADER = ("model", "clean", "PGD-20", "AutoAttack")


def table(*results: Robustness) -> str:
    """Plain text: one row a model, accuracies in % with half of their 95 % interval and n; then what belongs to them.

    Threats and data sets are named below, once if they are the same for all; then AutoAttack's steps and the warnings.
    """
    rows = [HEADER, *((r.model, _cell(r.clean), _cell(r.pgd), _cell(r.autoattack) + _mark(r)) for r in results)]
    lines = _aligned(rows)
    lines += [f"AutoAttack*: {what}" for what in dict.fromkeys(r.attacks["autoattack"] for r in results if _mark(r))]
    lines += [f"{', '.join(names)}: {what}" if len(names) < len(results) else what for what, names in _shared(results)]
    for r in results:
        if r.data.note:
            lines.append(f"{r.model}: {r.data.note}")
        if r.autoattack:
            steps = ", ".join(f"{each} {100 * r.scores[each].accuracy:.1f}" for each in ATTACKS)
            lines.append(f"{r.model}: right after {steps}")
        lines += [f"{r.model}: WARNING: {warning}" for warning in r.warnings]
    return "\n".join(lines)


def _cell(score: Score | None) -> str:
    if score is None or not score.n:
        return "-"
    low, high = score.interval
    return f"{100 * score.accuracy:.1f} \u00b1 {50 * (high - low):.1f} (n={score.n})"


def _mark(result: Robustness) -> str:
    """A star if the AutoAttack of this result is not the standard version."""
    version = result.attacks.get("autoattack", STANDARD)
    return "" if version.startswith(STANDARD) else "*"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
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
