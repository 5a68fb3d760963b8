"""The analyses of a finished or stopped run, or of any model."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..analysis import OneTerm, compare, conflict, estimate, see
from ..attacks import PGD
from ..data import Data, DataConfig, subset
from ..evaluation import EvaluationConfig, open_model
from ..evaluation._known import known
from ..evaluation._selection import select
from ..evaluation._where import named_device
from ..generators import forked
from ..methods import Method, method_name
from ..modes import evaluating
from ..norm import branch_if_split
from ..pixels import InPixels
from . import checkpoint, weights
from .batches import SeededBatches, stack
from .config import TrainConfig
from .model import build_model
from .recipe import read_recipe
from .session import build_method
from .state import load_tree

FORMAT = "timm_arat.analysis/1"
LAST = "weights/last.safetensors"
BATCH = 250  # images at a time, of which the attack's random starts are drawn


def diagnose(
    model: str,
    *,
    data: DataConfig | None = None,
    images: int = 1000,
    batches: int = 10,
    steps: int = 20,
    layers: Sequence[str] = (),
    official: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Everything that can be measured of `model`, as JSON holds it; see docs/analysis.md.

    A run's folder has its method with both branches and predictors: of its newest checkpoint, or else of its last
    weights, where predictors are not saved and gradients are not compared. Features are those of the average, where
    the run has one. Of a model alone there are features only.

    Args:
        model: A run's folder, or what `timm.create_model` takes.
        data: Instead of the images that the model was made for.
        images: Test images whose features are taken.
        batches: Training batches on which gradients are compared.
        steps: PGD steps on the test images.
        layers: Layers of the features, see `tap`; those of the method, or the last stage, if empty.
        official: The two losses of the official code.
        seed: Of the choice of images and of the attacks.
        device: Where to; cuda if there is one.

    Raises:
        ValueError: no such model or run, or no images for it.
    """
    started = time.perf_counter()
    place = named_device(device)
    fields: dict[str, Any] = {"format": FORMAT, "model": model, "seed": seed}
    with forked():
        torch.manual_seed(seed)
        recipe = Path(model) / "config.yaml"
        if recipe.is_file():
            config = read_recipe(recipe)
            method, loaded, source = _method(config, Path(model))
            method.to(place)
            fields |= {"method": method_name(config.method), "weights": source}
            if batches:
                whole = source != LAST or not len(getattr(method, "predictors", ()))
                fields["conflict"] = _conflicts(method, loaded, config, batches, seed, official) if whole else None
            if config.average.kind != "none" and source != LAST:  # what is evaluated and exported
                weights.load(method.model, Path(model) / LAST)
                fields["weights"] = f"{source}, and of the averaged weights in {LAST} the features"
            network, threat, own = method.network, config.evaluated(), method.clean_branch == "aux"
            name, layers = (data or config.data).name, tuple(layers) or getattr(method, "layers", ())
            test: Any = data or loaded.test
        else:
            about = known(model)
            if data is None and not about.data:
                raise ValueError(f"data.name: {model} does not know its data: give --data.name, such as torch/cifar10")
            test = data or DataConfig(**about.data)
            name = test.name
            opened, _ = open_model(model, place)
            assert isinstance(opened, InPixels), "what is opened by a name is timm's, and wrapped"
            network, own, threat = opened, True, EvaluationConfig().with_threat(about.norm or "linf", about.eps)
        attack = PGD(norm=threat.norm or "linf", eps=threat.eps, steps=steps)
        torch.manual_seed(seed)
        fields |= {"threat": {"norm": attack.norm, "eps": attack.radius, "steps": steps}, "data": name}
        fields["layers"] = _features(network, test, attack, images, tuple(layers), seed, own)
    return fields | {"seconds": time.perf_counter() - started}


def _method(config: TrainConfig, folder: Path) -> tuple[Method, Data, str]:
    """The method of a run with its trained weights, its data, and where in the folder the weights are from."""
    newest = checkpoint.newest(folder / "checkpoints")
    last = folder / LAST
    if newest is None and not last.is_file():
        raise ValueError(f"{folder} holds neither a checkpoint nor {last.name}: let its first epoch end")
    model, data = build_model(config)
    method = build_method(config, model)
    if newest is None:
        weights.load(method.model, last)
        return method, data, LAST
    method.load_state_dict(load_tree(newest / "training")["method"])
    return method, data, f"checkpoints/{newest.name}"


def _conflicts(
    method: Method, data: Data, config: TrainConfig, batches: int, seed: int, official: bool
) -> dict[str, Any] | None:
    """Gradients on augmented training batches in train mode: means over the batches; None for a loss of one term."""
    assert data.train is not None
    size = min(config.data.batch_size, len(data.train.labels))
    batches = min(batches, len(data.train.labels) // size)
    chosen = subset(data.train.labels, batches * size, seed)
    order = chosen[torch.randperm(len(chosen))].tolist()
    images, device, found = SeededBatches(data.train, seed, mix=False), next(method.parameters()).device, []
    for number in range(batches):
        x, y = (each.to(device) for each in stack(images.__getitems__(order[number * size : (number + 1) * size])))
        method.train()
        x, x_adv = method.perturb(x, y)
        try:
            found.append(conflict(method, x, y, x_adv, official=official).to_json())
        except OneTerm:
            return None
    return {"batch": size, "official": official, **_means(found)}


def _means(trees: list[Any]) -> Any:
    """One tree of the same form with an estimate in the place of each number; None where a batch has none."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: _means([tree[key] for tree in trees]) for key in first}
    if isinstance(first, int):
        return first  # the number of weights
    numbers = [tree for tree in trees if tree is not None]
    return estimate(numbers).to_json() if numbers else None


def _features(
    network: InPixels, data: Any, attack: PGD, images: int, layers: tuple[str, ...], seed: int, own: bool
) -> dict[str, Any]:
    """Distances, invariance and statistics by layer on stratified test images, attacked by the main branch."""
    chosen = select(data, network, pgd_images=images, autoattack_images=0, seed=seed, shard=None)
    device = next(network.parameters()).device
    with evaluating(network), branch_if_split(network, "main"):
        pairs = zip(chosen.x.split(BATCH), chosen.y.split(BATCH), strict=True)
        adv = [attack(network, x.to(device), y.to(device)).cpu() for x, y in pairs]
    return compare(see(network, chosen.x, torch.cat(adv), layers, batch=BATCH, own=own))
