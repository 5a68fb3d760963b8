"""From a finished run to the folder that a Hub repository will hold."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import timm

from ..data import DataConfig, Images, load, match_labels, subset, tensors
from ..evaluation import Robustness, compare, evaluate
from ..models._json import read_config
from ..models._weights import AUX_NORM, RECORD, WEIGHTS
from . import _curves
from ._agree import check_images, check_run, settings_of
from ._card import render
from ._cost import before, seconds_of
from ._export import export
from ._files import TWIN, check_free, check_plain, files, is_ours, move_into
from ._pictures import draw
from ._public import check_public, public, public_command, public_lines, public_results, public_tree, public_yaml

CURVE_IMAGES = 1000


def assemble(
    run: str | Path,
    folder: str | Path,
    repo_id: str,
    *,
    mix: float = 0.0,
    dataset: dict[str, str] | None = None,
    license: str | None = None,
    images: int = CURVE_IMAGES,
    twin: str | Path | None = None,
) -> Path:
    """Put together in `folder` what the repository `repo_id` will hold, from the finished run in `run`.

    The model, its auxiliary norms, results.json, the recipe, the curves of robust accuracy against eps and against the
    mix of the branches (measured here, with PGD-20), the pictures and the card.

    Args:
        run: A run's folder, with model/, weights/best.safetensors, results.json, config.yaml and summary.jsonl.
        folder: Where to; called ARCHITECTURE.TAG, the tag becomes the checkpoint's in timm's sense. It must be missing,
            empty or an assembled checkpoint, whose files are replaced; whatever else lies there stays.
        repo_id: ORG/NAME on the Hub, for the card.
        mix: Share of the auxiliary branch in the published norms. Other than 0, the model is another than the run's,
            so it is evaluated here with the settings of the run's results, AutoAttack included.
        dataset: `name` for people, `id` on the Hub, `note`, where the run's own name of its data does not say it.
        license: Of the weights, by the Hub's name for it; that of the architecture in timm if not given.
        images: Stratified test images for the curves.
        twin: Another run's folder, of the same backbone on the same data by another method: the card compares the two.

    Raises:
        ValueError: `folder` holds something else; the run is not finished or not evaluated; its results are of other
            weights than its model's, of other images or for another threat than its config.yaml says; its exported
            logits differ from the trained model's; or one of its files is a link.
    """
    run, folder = Path(run), Path(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", folder.name):
        raise ValueError(f"a checkpoint cannot be called {folder.name!r}: letters, digits, '_', '-' and '.' only")
    check_free(folder)
    data = DataConfig(**settings_of(run)["data"])
    results = check_run(run)
    config = read_config(run / "model" / "config.json")
    _check_name(folder, config["architecture"])
    if images < 1:
        raise ValueError(f"images={images} is not at least 1: the curves are measured on them")
    if mix and results.pgd is None:
        raise ValueError(f"{run} was evaluated without PGD, with which mix={mix} is measured: evaluate it with pgd")
    if twin:
        check_twin(check_run(Path(twin)), Path(twin), config["architecture"], results)
    test = test_images(data, config, results)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as partial:
        aside = Path(partial) / folder.name
        aside.mkdir()
        _write_model(run / "model", aside, config, mix)
        config = _describe(aside, config, results, mix, dataset or {}, license)
        state = folder.parent / f".{folder.name}-mix-{mix:g}.state"
        if mix:
            results = _evaluate_again(results, data, aside, state)
        results = public_results(results)
        results.save(aside / "results.json")
        _write_recipe(run, aside)
        if twin:
            write_twin(Path(twin), aside, results)
        write_measured(aside, config, results, test, images)
        write_card(aside, repo_id)
        check_public(aside, files(aside), (Path.home(), Path.cwd(), run.resolve(), folder.parent.resolve()))
        move_into(aside, folder)
        state.unlink(missing_ok=True)
    return folder


def _check_name(folder: Path, architecture: str) -> None:
    """ValueError where the folder's name or its checkpoint is of another architecture: most likely a wrong word."""
    way_out = f"give another --repo_id or --name, such as {architecture}_arat.TAG"
    if is_ours(folder) and (there := read_config(folder / "config.json")["architecture"]) != architecture:
        raise ValueError(f"{folder} is a checkpoint of {there}, and the run is of {architecture}: {way_out}")
    named = folder.name.partition(".")[0].removesuffix("_arat")
    if named != architecture and timm.is_model(named):
        raise ValueError(f"the run is of {architecture}, and the checkpoint would be called {folder.name}: {way_out}")


def test_images(data: DataConfig, config: dict[str, Any], results: Robustness) -> Images:
    """The test images that `results` were measured on, for the model that `config` describes, by their public name."""
    found = load(data, input_size=tuple(config["pretrained_cfg"]["input_size"]), splits=("test",))
    assert found.test is not None
    # The training split, which is not read here, may have more classes: as in the evaluation, they go by their names.
    found.test.relabel(match_labels(found.class_names, config.get("label_names")).to_other)
    check_images(found.test, results, config)
    found.test.name = public(found.test.name)
    return found.test


def _write_model(source: Path, folder: Path, config: dict[str, Any], mix: float) -> None:
    """The run's exported model, or the one with the interpolated norms; its auxiliary norms stay the trained."""
    for name in ("config.json", WEIGHTS, AUX_NORM):
        if (source / name).exists():
            shutil.copyfile(check_plain(source, name), folder / name)
    if not mix:
        return
    if not (folder / AUX_NORM).exists():
        raise ValueError(f"mix={mix}: the model of {source.parent} has one set of norms, there is nothing to mix in")
    known = ("architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg")
    facts = {key: value for key, value in config.items() if key not in known}
    export(_curves.split_model(folder), folder, mix=mix, model_args=config.get("model_args"), **facts)


def _write_recipe(run: Path, folder: Path) -> None:
    """Public copies of how the run was made."""
    (folder / "training.yaml").write_text(public_yaml((run / "config.yaml").read_text()))
    (folder / "summary.jsonl").write_text(public_lines((run / "summary.jsonl").read_text()))
    # All of them: where a run went on with other settings, the first alone would not give the same weights.
    commands = dict.fromkeys(map(public_command, check_plain(run, "command.txt").read_text().splitlines()))
    (folder / "command.txt").write_text("".join(f"accelerate launch {command}\n" for command in commands))


def check_twin(twin: Robustness, run: Path, architecture: str, results: Robustness) -> None:
    """ValueError unless `twin`, which the run in `run` has, can be compared with `results` of `architecture`."""
    theirs = read_config(run / "model" / "config.json")["architecture"]
    if architecture != theirs:
        raise ValueError(f"{run} is of {theirs} and this model {architecture}: a twin has the same backbone")
    if "autoattack" not in compare(results, twin):  # and it refuses other images or another threat
        raise ValueError(f"{run} shares no AutoAttack result with this model: evaluate both with AutoAttack")


def write_twin(run: Path, folder: Path, results: Robustness) -> None:
    """Put the results of the twin in `run` beside `results`, and into config.json what its training took."""
    twin = public_results(check_run(run))
    check_twin(twin, run, read_config(folder / "config.json")["architecture"], results)
    twin.save(folder / TWIN)
    trained = read_config(run / "model" / "config.json")["training"]
    took = {"seconds": seconds_of(run / "summary.jsonl")} | (
        {"before": earlier} if (earlier := before(trained)) else {}
    )
    config = read_config(folder / "config.json") | {"twin": public_tree(trained) | took}
    _write_config(config, folder)


def write_measured(folder: Path, config: dict[str, Any], results: Robustness, test: Images, images: int) -> None:
    """curves.json and the pictures."""
    curves = _curves.measure(folder, test, results, min(images, len(test)), config.get("mix", 0.0))
    curves.save(folder)
    shown = subset(test.labels, min(64, len(test)), results.seed)
    labels = list(config.get("label_names") or map(str, range(config["num_classes"])))
    draw(folder, results, curves, tensors(test, shown), labels)


def write_card(folder: Path, repo_id: str) -> None:
    """(Re)write the rendered files of `folder` and note the repository that they speak of."""
    write_rendered(folder, repo_id)
    (folder / RECORD).write_text(json.dumps({"repo_id": repo_id}, indent=1) + "\n")


def write_rendered(folder: Path, repo_id: str) -> None:
    """(Re)write what is rendered from the JSON of `folder`, for the repository `repo_id`."""
    for name, text in render(folder, repo_id).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def _describe(
    folder: Path,
    config: dict[str, Any],
    results: Robustness,
    mix: float,
    dataset: dict[str, str],
    license: str | None,
) -> dict[str, Any]:
    """Put the threat, the data set, the tag and the licence into config.json."""
    source = public(results.data.name)
    named = {"name": source} | dataset | {"source": source, "split": results.data.split}
    earlier = before(config["training"])
    config = public_tree(config) | {"threat": {"norm": results.norm, "eps": results.eps}, "dataset": public_tree(named)}
    if mix:
        config["mix"] = mix
    if earlier:
        config["training"]["before"] = earlier
    config["pretrained_cfg"]["tag"] = folder.name.partition(".")[2]
    if license:
        config["pretrained_cfg"]["license"] = license
    _write_config(config, folder)
    return config


def _write_config(config: dict[str, Any], folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _evaluate_again(results: Robustness, data: DataConfig, folder: Path, state: Path) -> Robustness:
    """As `results`, for the model in `folder`; a call after an interruption goes on from `state`."""
    assert results.pgd is not None
    return evaluate(
        f"local-dir:{folder}",
        data,
        norm=results.norm,
        eps=results.eps,
        autoattack_images=results.data.autoattack_images,
        pgd_images=results.pgd.n if results.pgd.n < results.data.size else None,
        batch_size=results.batch_size,
        seed=results.seed,
        fast=results.fast,
        attacks=("clean", "pgd", "autoattack") if results.autoattack else ("clean", "pgd"),
        state=state,
        name=folder.name,
    )
