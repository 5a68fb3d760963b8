"""The card: README.md, rendered from the template and the JSON of a checkpoint's folder and from nothing else."""

import re
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..evaluation import Paired, Robustness, Score, compare, eps_text
from ..evaluation._autoattack import STANDARD
from ..models._json import read_config, read_json
from ..models._weights import AUX_NORM, CARDS
from ._cost import cost, seconds_of, sources
from ._curves import Curves
from ._escape import fenced, inline
from ._files import TWIN

README = "README.md"
EVAL_RESULTS = ".eval_results/timm_arat.yaml"


def render(folder: Path, repo_id: str) -> dict[str, str]:
    """README.md and the evaluation-results file of the checkpoint in `folder`, by path in the repository.

    Every number is read from results.json, curves.json, config.json and summary.jsonl.
    """
    config = read_config(folder / "config.json")
    results, curves = Robustness.load(folder / "results.json"), Curves.load(folder)
    dataset = config["dataset"]
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        license=config["pretrained_cfg"].get("license"),
        datasets=[dataset["id"]] if dataset.get("id") else None,
        base_model=_on_the_hub(str(config["training"].get("started_from"))),
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
    seconds = seconds_of(folder / "summary.jsonl")
    rivals = read_json(CARDS / "rivals.json")
    return {
        "name": inline(folder.name),
        "repo_id": repo_id,
        "architecture": architecture,
        "registers": ours,
        "needs": "after `import timm_arat`, which registers the backbone" if ours else "without timm_arat",
        "trained": {"standard": "plainly"}.get(training["method"], f"by {inline(training['method'].upper())}"),
        "dataset": inline(dataset["name"]),
        "split": inline(results.data.split or "test"),
        "note": inline(dataset.get("note") or ""),
        "threat": threat,
        "rows": rows,
        "version": inline(_version(results)),
        "warnings": list(map(inline, results.warnings)),
        "input_size": config["pretrained_cfg"]["input_size"],
        "num_classes": config["num_classes"],
        "has_aux": (folder / AUX_NORM).exists(),
        "n_thorough": results.autoattack.n if results.autoattack else 0,
        "rivals": rivals.get(folder.name.partition(".")[2]),
        "twin": _twin(folder, config.get("twin"), results),
        "curve": (folder / "training.png").exists(),
        "mix": [{"mix": f"{mix:g}", "clean": _half(point.clean), "pgd": _half(point.pgd)} for mix, point in curves.mix],
        "mix_here": f"{config.get('mix', 0):g}",
        "device": inline(results.device),
        "measure": f"--norm {results.norm} --eps {eps_text(results.eps)}",
        "mix_n": curves.mix[0][1].pgd.n if curves.mix and curves.mix[0][1].pgd else 0,
        "training": f"{cost(training, seconds)}.{sources(training)}",
        "command": fenced((folder / "command.txt").read_text().strip(), "bash"),
    }


def _version(results: Robustness) -> str:
    """Which AutoAttack it was: of fewer than four classes there is no standard version."""
    described = results.attacks.get("autoattack", STANDARD)
    version, _, details = described.partition(", ")
    if version != STANDARD:
        return described
    return f"the official standard version ({details})" if details else "the official standard version"


def _twin(folder: Path, training: dict[str, Any] | None, results: Robustness) -> dict[str, Any] | None:
    """The same backbone by another method, paired with `results` on the same images; how it was trained."""
    if not (folder / TWIN).exists():
        return None
    twin = Robustness.load(folder / TWIN)
    pairs = compare(results, twin)
    names = {"clean": "clean", "pgd": "PGD-20", "autoattack": "AutoAttack"}
    rows = [
        {
            "name": f"{names[key]} (n={pair.n})",
            "ours": _percent(pair.a),
            "theirs": _percent(pair.b),
            "paired": _paired(pair),
        }
        for key, pair in pairs.items()
    ]
    trained = f"{inline(cost(training, training['seconds']))}.{sources(training)}" if training else ""
    return {"model": inline(twin.model), "training": trained, "rows": rows}


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
                dataset_type=dataset.get("id") or _slug(results.data.name),
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


def _slug(name: str) -> str:
    """A data set's name as the Hub takes it: ORG/NAME or NAME."""
    parts = [re.sub(r"[^\w.-]+", "-", part).strip("-.") for part in name.split("/")[-2:]]
    if len(parts) == 2 and parts[0] in ("hfds", "hfids", "tfds", "wds", "torch"):
        parts = parts[1:]
    return "/".join(filter(None, parts)) or "unknown"


def _paired(pair: Paired) -> str:
    low, high = pair.interval
    return f"{pair.difference:+.1%} ({low:+.1%} to {high:+.1%}), p = {pair.p_value:.2g}"


def _on_the_hub(name: str) -> str | None:
    """The repository of timm's name of a checkpoint, or None where it has none there."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:").partition("@")[0]
    cfg = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    return cfg.hf_hub_id if cfg else None


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
