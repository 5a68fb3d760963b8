"""The card: README.md, rendered from the template and the JSON of a checkpoint's folder and from nothing else."""

import json
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..evaluation import Robustness, Score, eps_text
from ..models._weights import AUX_NORM, CARDS
from ._curves import Curves

README = "README.md"
EVAL_RESULTS = ".eval_results/timm_arat.yaml"


def render(folder: Path, repo_id: str) -> dict[str, str]:
    """README.md and the evaluation-results file of the checkpoint in `folder`, by path in the repository.

    Every number is read from results.json, curves.json, config.json and summary.jsonl.
    """
    config = json.loads((folder / "config.json").read_text())
    results, curves = Robustness.load(folder / "results.json"), Curves.load(folder)
    dataset = config["dataset"]
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=config["pretrained_cfg"].get("license") or "apache-2.0",
        datasets=[dataset["id"]] if dataset.get("id") else None,
        tags=["timm", "image-classification", "adversarial-robustness", config["training"]["method"], results.norm],
        model_name=folder.name,
        eval_results=_model_index(results, dataset),
    )
    card = ModelCard.from_template(
        data, template_path=str(CARDS / "template.md"), **_facts(folder, config, results, curves, repo_id)
    )
    files = {README: str(card)}
    if dataset.get("id"):
        files[EVAL_RESULTS] = yaml.safe_dump(_eval_results(results, dataset), sort_keys=False)
    return files


def _facts(folder: Path, config: dict[str, Any], results: Robustness, curves: Curves, repo_id: str) -> dict[str, Any]:
    """What the template speaks of."""
    architecture, training, dataset = config["architecture"], config["training"], config["dataset"]
    # Whoever reads the card may not have our package: does timm itself know the architecture?
    ours = timm.models.model_entrypoint(architecture).__module__.startswith("timm_arat")
    threat = f"{results.norm} {eps_text(results.eps)}"
    rows = [
        {"name": name, "accuracy": _percent(score.accuracy), "interval": _interval(score), "n": score.n}
        for name, score in (("clean", results.clean), ("PGD-20", results.pgd), ("AutoAttack", results.autoattack))
        if score is not None
    ]
    epochs = [json.loads(line) for line in (folder / "summary.jsonl").read_text().splitlines()]
    seconds = sum(row["seconds"] for row in {row["epoch"]: row for row in epochs}.values())
    rivals = json.loads((CARDS / "rivals.json").read_text())
    return {
        "name": folder.name,
        "repo_id": repo_id,
        "architecture": architecture,
        "registers": ours,
        "needs": "after `import timm_arat`, which registers the backbone" if ours else "without timm_arat",
        "trained": {"standard": "plainly"}.get(training["method"], f"by {training['method'].upper()}"),
        "dataset": dataset["name"],
        "split": results.data.split or "test",
        "note": dataset.get("note"),
        "threat": threat,
        "rows": rows,
        "targets": results.attacks.get("autoattack", "").partition(", ")[2],
        "warnings": results.warnings,
        "input_size": config["pretrained_cfg"]["input_size"],
        "num_classes": config["num_classes"],
        "has_aux": (folder / AUX_NORM).exists(),
        "n_thorough": results.autoattack.n if results.autoattack else 0,
        "rivals": rivals.get(f"{threat} {(dataset.get('id') or '').rpartition('/')[2]}", []),
        "mix": [{"mix": f"{mix:g}", "clean": _half(point.clean), "pgd": _half(point.pgd)} for mix, point in curves.mix],
        "mix_here": f"{config.get('mix', 0):g}",
        "mix_n": curves.mix[0][1].pgd.n if curves.mix and curves.mix[0][1].pgd else 0,
        "training": f"{training['epochs']} epochs, seed {training['seed']}, {_duration(seconds)} on {results.device}.",
        "command": (folder / "command.txt").read_text().strip(),
    }


def _model_index(results: Robustness, dataset: dict[str, Any]) -> list[EvalResult]:
    """Clean, PGD-20 and AutoAttack accuracy, as shares of 1, with what they depend on."""
    versions = {"timm_arat": results.versions["timm_arat"], "pyautoattack": results.versions["pyautoattack"]}
    found = []
    for name, score in _named(results):
        args: dict[str, Any] = {"n_examples": score.n, "interval_95": [round(end, 4) for end in score.interval]}
        if name != "clean accuracy":
            args |= {"norm": results.norm, "eps": results.eps, "seed": results.seed}
        found.append(
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset.get("id") or results.data.name,
                dataset_name=dataset["name"],
                dataset_split=results.data.split or "test",
                metric_type="accuracy",
                metric_name=name,
                metric_value=round(score.accuracy, 4),
                metric_args=args | versions,
            )
        )
    return found


def _eval_results(results: Robustness, dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """The same numbers in the Hub's newer format; no benchmark of robust accuracy is registered there yet."""
    task = f"{results.norm}-{eps_text(results.eps).replace('/', '-')}"
    return eval_result_entries_to_yaml(
        [
            EvalResultEntry(
                dataset_id=dataset["id"],
                task_id="clean" if name == "clean accuracy" else f"{name.split()[0].lower()}-{task}",
                value=round(100 * score.accuracy, 2),
                notes=f"{name}, {dataset['name']}, n={score.n}, 95 % interval {_interval(score)}",
            )
            for name, score in _named(results)
        ]
    )


def _named(results: Robustness) -> list[tuple[str, Score]]:
    threat = f"{results.norm} {eps_text(results.eps)}"
    scores = (
        ("clean accuracy", results.clean),
        (f"PGD-20 {threat}", results.pgd),
        (f"AutoAttack {threat}", results.autoattack),
    )
    return [(name, score) for name, score in scores if score is not None]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(score: Score) -> str:
    low, high = score.interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _half(score: Score | None) -> str:
    if score is None:
        return "-"
    low, high = score.interval
    return f"{100 * score.accuracy:.1f} ± {50 * (high - low):.1f}"
