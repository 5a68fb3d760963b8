"""Render finished runs into a document: `python -m benchmarks.report runs/a runs/b --name NAME --into docs/results.md`.

The table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` of the document; beside it, in a folder called
`results`, lie the JSON it was made from and a picture of the training. Numbers enter documents this way only.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from timm_arat.config import cli, read
from timm_arat.engine.best import Select, best_epoch
from timm_arat.evaluation._score import cell
from timm_arat.files import read_rows

from ._words import with_list
from .document import check_block, write_block


@dataclass(frozen=True)
class Options:
    """What to render.

    Attributes:
        runs: Folders of finished runs, the model of interest first; runs of one method are told apart by their folders.
        name: Name of the block in the document and of the files beside it.
        into: The Markdown document.
        files: Folder of the JSON and the picture; `results` beside the document if not given.
        picture: Draw the training into a picture (`pip install timm_arat[plot]`).
    """

    runs: tuple[str, ...]
    name: str
    into: str
    files: str | None = None
    picture: bool = True


@cli
def main() -> None:
    """Render, and say what was written."""
    words = with_list("runs", sys.argv[1:])
    options = read(Options, words, variants={}, prog="python -m benchmarks.report", description="Runs into a document.")
    document = Path(options.into)
    check_block(document, options.name)
    folder = Path(options.files) if options.files else document.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    runs = [Path(run) for run in options.runs]
    lines = table(runs)
    for run, name in zip(runs, _names(runs), strict=True):
        stem = f"{options.name}-{name}"
        for source in ("results.json", "results_last.json", "summary.jsonl"):
            if (run / source).exists():
                shutil.copyfile(run / source, folder / f"{stem}.{source}")
    if options.picture:
        plot(runs, folder / f"{options.name}.png")
        lines += ["", f"![Training of {options.name}]({os.path.relpath(folder, document.parent)}/{options.name}.png)"]
    write_block(document, options.name, lines)
    print(f"{document}, {folder}/{options.name}*")


def table(runs: list[Path]) -> list[str]:
    """Markdown lines: accuracies of the best and of the last weights, cost, paired comparisons, commands."""
    from timm_arat.evaluation import Robustness, compare, eps_text

    results = [Robustness.load(run / "results.json") for run in runs]
    models = [_model(result.model, run, name) for result, run, name in zip(results, runs, _names(runs), strict=True)]
    lines = [
        "| model | weights | clean | PGD-20 | AutoAttack | clean + AutoAttack | epochs | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run, best, model in zip(runs, results, models, strict=True):
        rows = read_rows(run / "summary.jsonl")
        chosen = best_epoch(rows, _select(run))
        seconds = sum(row["seconds"] for row in rows)
        cost = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
        total = (
            f"{100 * (best.clean.accuracy + best.autoattack.accuracy):.1f}" if best.clean and best.autoattack else ""
        )
        cells = [
            model,
            f"best (epoch {chosen})",
            cell(best.clean),
            cell(best.pgd),
            cell(best.autoattack),
            total,
        ]
        lines.append(f"| {' | '.join([*cells, str(len(rows)), cost])} |")
        if (run / "results_last.json").exists():
            last = Robustness.load(run / "results_last.json")
            lines.append(f"| {model} | last | {cell(last.clean)} | {cell(last.pgd)} | - | - | {len(rows)} | |")
    first = results[0]
    where = f"{first.data.name} {first.data.split}".strip()
    lines += [
        "",
        f"Accuracy in % ± half the 95 % interval; {first.norm}, eps {eps_text(first.eps)}; {where}; {first.device}.",
    ]
    for other, model in zip(results[1:], models[1:], strict=True):
        paired = ", ".join(f"{attack} {pair}" for attack, pair in compare(first, other).items())
        lines.append(f"{models[0]} less {model} on the same images: {paired}.")
    for result, model in zip(results, models, strict=True):
        lines += [f"Warning for {model}: {warning}." for warning in result.warnings]
    lines += ["", "```bash", *dict.fromkeys(line for run in runs for line in _commands(run)), "```"]
    return lines


def plot(runs: list[Path], path: Path) -> None:
    """Loss terms, balance weight and validation accuracy over the epochs, a column a run."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib is not installed: pip install timm_arat[plot], or give --picture false"
        ) from error
    figure = Figure(figsize=(4.5 * len(runs), 7), layout="constrained")
    axes = figure.subplots(3, len(runs), squeeze=False, sharex="col", sharey="row")
    panels = [
        ("loss terms", ("loss", "ce_adv", "ce_clean", "invariance")),
        ("balance weight", ("balance",)),
        ("validation accuracy", ("val_clean", "val_robust")),
    ]
    for column, (run, name) in enumerate(zip(runs, _names(runs), strict=True)):
        rows = read_rows(run / "summary.jsonl")
        for row, (title, names) in enumerate(panels):
            axis = axes[row][column]
            for key in names:
                if key in rows[0]:
                    axis.plot(
                        [r["epoch"] for r in rows], [r[key] for r in rows], marker="o", label=key.replace("_", " ")
                    )
            axis.set_ylabel(title)
            if axis.has_data():
                axis.legend()
        axes[0][column].set_title(f"{_facts(run)['model']}, {name}")
        axes[2][column].set_xlabel("epoch")
    figure.savefig(path, dpi=110)


def _select(run: Path) -> Select:
    """What the run's best epoch is best at, by its configuration (of earlier versions: under `evaluation`)."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    found: Select = "sum"  # of a run without a word about it
    for part in ("evaluation", "validation"):
        found = (config.get(part) or {}).get("select", found)
    return found


def _facts(run: Path) -> dict[str, str]:
    config = json.loads((run / "model" / "config.json").read_text())
    return {"method": config["training"]["method"], "model": config["architecture"]}


def _names(runs: list[Path]) -> list[str]:
    """What tells the runs apart: their methods, or their folders' names where a method comes twice.

    Raises:
        ValueError: some of these are equal too.
    """
    methods = [_facts(run)["method"] for run in runs]
    names = [
        run.resolve().name if methods.count(method) > 1 else method for run, method in zip(runs, methods, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ValueError(
            f"runs={', '.join(map(str, runs))}: some have one method and one folder's name; rename a folder"
        )
    return names


def _model(model: str, run: Path, name: str) -> str:
    """How the table calls the model of a run."""
    return model if name == _facts(run)["method"] else f"{model}, {name}"


def _commands(run: Path) -> list[str]:
    """The commands of the run, as the launcher got them: one that went on may have had other settings."""
    return [f"accelerate launch {line}" for line in (run / "command.txt").read_text().splitlines()]


if __name__ == "__main__":
    main()
