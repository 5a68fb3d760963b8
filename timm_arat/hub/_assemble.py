"""From a finished run to the folder that a Hub repository will hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors.torch import load_file

from ..data import DataConfig, load, subset, tensors
from ..evaluation import Robustness, evaluate, fingerprint
from ..models._weights import AUX_NORM, RECORD, WEIGHTS
from ..pixels import in_pixels
from . import _curves
from ._card import render
from ._export import export
from ._pictures import draw

CURVE_IMAGES = 1000
COPIED = {"config.yaml": "training.yaml", "summary.jsonl": "summary.jsonl"}


def assemble(
    run: str | Path,
    folder: str | Path,
    repo_id: str,
    *,
    mix: float = 0.0,
    dataset: dict[str, str] | None = None,
    images: int = CURVE_IMAGES,
) -> Path:
    """Put together in `folder` what the repository `repo_id` will hold, from the finished run in `run`.

    The model, its auxiliary norms, results.json, the recipe, the curves of robust accuracy against eps and against the
    mix of the branches (measured here, with PGD-20), the pictures and the card.

    Args:
        run: A run's folder, with model/, weights/best.safetensors, results.json, config.yaml and summary.jsonl.
        folder: Where to; called ARCHITECTURE.TAG, the tag becomes the checkpoint's in timm's sense. Replaced if it
            exists.
        repo_id: ORG/NAME on the Hub, for the card.
        mix: Share of the auxiliary branch in the published norms. Other than 0, the model is another than the run's,
            so it is evaluated here with the settings of the run's results, AutoAttack included.
        dataset: `name` for people, `id` on the Hub, `note`, where the run's own name of its data does not say it.
        images: Stratified test images for the curves.

    Raises:
        ValueError: the run is not finished or not evaluated, its results are of other weights than its model's, or its
            exported logits differ from the trained model's.
    """
    run, folder = Path(run), Path(folder)
    results = check_run(run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    data = DataConfig(**settings["data"])
    config = json.loads((run / "model" / "config.json").read_text())

    aside = folder.with_name(f".{folder.name}.partial") / folder.name
    shutil.rmtree(aside.parent, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in ("config.json", WEIGHTS, AUX_NORM):
        if (run / "model" / name).exists():
            shutil.copyfile(run / "model" / name, aside / name)
    if mix:
        if not (aside / AUX_NORM).exists():
            raise ValueError(f"mix={mix}: the model of {run} has one set of norms, there is nothing to mix in")
        _write_mixed(aside, config, mix)
    config = _describe(aside, config, results, mix, dataset or {"name": data.name})
    if mix:
        results = _evaluate_again(results, data, aside, folder.parent / f".{folder.name}-mix-{mix:g}.state")
    results.save(aside / "results.json")
    for source, name in COPIED.items():
        shutil.copyfile(run / source, aside / name)
    command = (run / "command.txt").read_text().splitlines()[0]
    (aside / "command.txt").write_text(f"accelerate launch {command}\n")

    size = tuple(config["pretrained_cfg"]["input_size"])
    found = load(data, input_size=size, splits=("test",))
    assert found.test is not None
    curves = _curves.measure(aside, found.test, results, min(images, len(found.test)))
    curves.save(aside)
    shown = subset(found.test.labels, min(64, len(found.test)), results.seed)
    labels = list(config.get("label_names") or map(str, range(config["num_classes"])))
    draw(aside, results, curves, tensors(found.test, shown), labels)
    write_card(aside, repo_id)

    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    aside.parent.rmdir()
    return folder


def check_run(run: Path) -> Robustness:
    """The results of a finished run, after making sure that they are its model's, and its model the trained one."""
    for name, what in (
        ("config.yaml", "is not a run's folder"),
        ("model/config.json", "holds no exported model: the run has not finished"),
        ("results.json", "was not evaluated: let the run end, or call recipes/evaluate.py with it"),
        ("weights/best.safetensors", "has lost its trained weights"),
        ("summary.jsonl", "has no epoch in it"),
    ):
        if not (run / name).is_file():
            raise ValueError(f"{run} {what} (there is no {name}); only a finished, evaluated run can be published")
    results = check_results(run / "model", run / "results.json")
    trained = load_file(run / "weights" / "best.safetensors")
    exported = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    again = timm.create_model(f"local-dir:{run / 'model'}", pretrained=False).eval()
    again.load_state_dict({key: trained[key] for key in exported.state_dict()})
    size: tuple[int, int, int] = exported.pretrained_cfg["input_size"]  # type: ignore[index, assignment]  # timm's
    x = torch.rand((2, *size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(exported(x), again(x)):
            raise ValueError(f"the logits of {run / 'model'} differ from those of the trained weights: export it again")
    return results


def check_results(model: Path, results: Path) -> Robustness:
    """The results in the file `results`, if they are of the weights in the folder `model`; ValueError otherwise."""
    found = Robustness.load(results)
    if found.autoattack is None or found.clean is None:
        raise ValueError(f"{results} holds no AutoAttack result: evaluate with --attack autoattack before publishing")
    if found.weights != fingerprint(in_pixels(timm.create_model(f"local-dir:{model}", pretrained=True))):
        raise ValueError(
            f"{results} is of other weights than those in {model} (or of another version of torch or timm, which "
            f"describe a model in other words): evaluate {model} again"
        )
    return found


def write_card(folder: Path, repo_id: str) -> None:
    """(Re)write the rendered files of `folder` and note the repository that they speak of."""
    for name, text in render(folder, repo_id).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / RECORD).write_text(json.dumps({"repo_id": repo_id}, indent=1) + "\n")


def _describe(
    folder: Path, config: dict[str, Any], results: Robustness, mix: float, dataset: dict[str, str]
) -> dict[str, Any]:
    """Put the threat, the data set and the tag into config.json."""
    config |= {"threat": {"norm": results.norm, "eps": results.eps}, "dataset": dataset}
    if mix:
        config["mix"] = mix
    config["pretrained_cfg"]["tag"] = folder.name.partition(".")[2]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return config


def _write_mixed(folder: Path, config: dict[str, Any], mix: float) -> None:
    """Replace the model in `folder` by the one with the interpolated norms; its auxiliary norms stay the trained."""
    known = ("architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg")
    facts = {key: value for key, value in config.items() if key not in known}
    export(_curves.split_model(folder), folder, mix=mix, model_args=config.get("model_args"), **facts)


def _evaluate_again(results: Robustness, data: DataConfig, folder: Path, state: Path) -> Robustness:
    """As `results`, for the model in `folder`; a call after an interruption goes on from `state`."""
    assert results.pgd is not None
    again = evaluate(
        f"local-dir:{folder}",
        data,
        norm=results.norm,  # type: ignore[arg-type]  # one of the three names
        eps=results.eps,
        limit=results.data.limit,
        pgd_limit=results.pgd.n if results.pgd.n < results.data.size else None,
        batch_size=results.batch_size,
        seed=results.seed,
        state=state,
        name=folder.name,
    )
    state.unlink(missing_ok=True)
    return again
