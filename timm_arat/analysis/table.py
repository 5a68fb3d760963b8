"""The invariance of several models side by side, as Table 5 of the ARAT paper, in Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def markdown(reports: Mapping[str, dict[str, Any]], along: Mapping[str, Sequence[dict[str, Any]]] | None = None) -> str:
    """A row a model and layer: invariance, distance, and where gradients were compared their cosine and conflict; and
    what moved in the last epoch, where there are rows of the training.

    Each number but the last is a mean with its 95 % interval.

    Args:
        reports: As `recipes/diagnose.py` writes them, by model.
        along: The rows of RUN/analysis.jsonl, by model.
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
    lines += _moved({model: [row for row in rows if row["kind"] == "epoch"] for model, rows in (along or {}).items()})
    return "\n".join(lines) + "\n"


def _moved(epochs: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """Drift of the features to the epoch before, and the variance of the running means, in each model's last epoch."""
    lines = []
    for model, last in ((model, rows[-1]) for model, rows in epochs.items() if rows):
        means = {name: each for name, each in last["statistics_variance"].items() if name.endswith("/running_mean")}
        variances = [[each for name, each in means.items() if name.startswith(branch)] for branch in ("main/", "aux/")]
        spreads = " | ".join(f"{statistics.mean(each):.2g}" if each else "-" for each in variances)
        lines += [f"| {model} | {layer} | {_cell(moved)} | {spreads} |" for layer, moved in last["drift"].items()]
    head = "| model | layer | drift in the last epoch | variance of running means, main | aux |"
    return ["", head, "|---|---|---|---|---|", *lines] if lines else []


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    interval = found["interval_95"]
    return f"{found['mean']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
