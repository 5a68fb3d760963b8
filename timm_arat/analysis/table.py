"""The invariance of several models side by side, as Table 5 of the ARAT paper, in Markdown."""

from collections.abc import Mapping
from typing import Any


def markdown(reports: Mapping[str, dict[str, Any]]) -> str:
    """A row a model and layer: invariance, distance, and where gradients were compared their cosine and conflict.

    Each number is a mean with its 95 % interval. `reports`: as `recipes/diagnose.py` writes them, by model.
    """
    lines = [
        "| model | layer | n | invariance | invariance, own branches | distance | distance, own branches |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, report in reports.items():
        for layer, row in report["layers"].items():
            main, own = row["main"], row["own"] or {}
            cells = [_cell(side.get(key)) for key in ("invariance", "distance") for side in (main, own)]
            lines.append(f"| {model} | {layer} | {main['invariance']['n']} | {' | '.join(cells)} |")
    compared = {model: report["conflict"] for model, report in reports.items() if report.get("conflict")}
    if compared:
        lines += ["", "| model | terms | batches | cosine | share in conflict |", "|---|---|---|---|---|"]
    for model, found in compared.items():
        for terms, pair in found["whole"]["pairs"].items():
            name = terms.replace("|", " and ")
            lines.append(f"| {model} | {name} | {pair['share']['n']} | {_cell(pair['cos'])} | {_cell(pair['share'])} |")
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    interval = found["interval_95"]
    return f"{found['mean']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
