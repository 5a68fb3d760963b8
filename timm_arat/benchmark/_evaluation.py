"""Section evaluation: AutoAttack through our evaluator against the official package called plainly."""

import copy
import time
from collections.abc import Callable
from typing import Any

import pyautoattack
import timm
import torch
from torch import Tensor, nn

from ..attacks import PGD
from ..data import DataConfig, load, subset, tensors
from ..evaluation import evaluate
from ..evaluation._autoattack import ATTACKS, NORMS
from ..evaluation._model import open_model
from ..methods import Madry
from ..pixels import in_pixels

EPOCHS = 15  # of the network that is trained here where none is given


def measure(
    model: str | None,
    config: DataConfig,
    eps: float,
    images: int,
    batch: int,
    say: Callable[[str], None],
    epochs: int = EPOCHS,
) -> dict[str, Any]:
    """One run of each, since it is long: seconds, their ratio, and the images on which the two disagree."""
    net: Any  # a timm model in pixels
    if model is None:
        net, (x, y) = _trained(config, eps, images, epochs)
        name = f"resnet20_cifar, {epochs} epochs of PGD training on {config.name}"
    else:
        net, name = open_model(model)
        x, y = _images(config, net.model.pretrained_cfg["input_size"], images)
    begin = time.perf_counter()
    ours = evaluate(net, (x, y), eps=eps, attacks=("autoattack",), batch_size=batch, progress=False)
    middle = time.perf_counter()
    robust = _plainly(net, x, y, eps, batch)
    end = time.perf_counter()
    assert ours.autoattack is not None
    mine = torch.tensor(ours.autoattack.correct, dtype=torch.bool)
    result: dict[str, Any] = {
        "model": name,
        "images": len(x),
        "eps": eps,
        "seconds": {"ours": round(middle - begin, 3), "pyautoattack": round(end - middle, 3)},
        "ratio": round((end - middle) / (middle - begin), 4),
        "robust": {"ours": int(mine.sum()), "pyautoattack": int(robust.sum())},
        "disagree": (mine != robust).nonzero().flatten().tolist(),
        "seconds_by_attack": {attack: ours.seconds[attack] for attack in ATTACKS},
    }
    say(f"evaluation: {result['ratio']:.2f}x, robust {result['robust']}, {len(result['disagree'])} images disagree")
    return result


def _plainly(net: nn.Module, x: Tensor, y: Tensor, eps: float, batch: int) -> Tensor:
    """Flags of the official package as its documentation calls it, for no more targets than there are."""
    net = copy.deepcopy(net).eval()
    device = next(net.parameters()).device
    official = pyautoattack.AutoAttack(net, norm=NORMS["linf"], eps=eps, seed=0, version="standard", device=device)
    with torch.no_grad():
        targets = net(x[:1].to(device)).shape[1] - 1
    for part in (official.apgd_targeted, official.fab):
        part.n_target_classes = min(part.n_target_classes, targets)
    _, found = official.run_standard_evaluation(x, y, batch_size=batch)
    return (found == y).cpu()


def _images(config: DataConfig, size: tuple[int, int, int], images: int) -> tuple[Tensor, Tensor]:
    test = load(config, input_size=size).test
    assert test is not None
    return tensors(test, subset(test.labels, min(images, len(test.labels)), seed=0))


def _trained(config: DataConfig, eps: float, images: int, epochs: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A small network, partly robust at `eps`, and its test images."""
    torch.manual_seed(0)
    size = (config.in_chans, config.image_size or 8, config.image_size or 8)
    data = load(config, input_size=size)
    assert data.train is not None
    x, y = tensors(data.train)
    model = timm.create_model("resnet20_cifar", num_classes=data.num_classes, in_chans=config.in_chans)
    method = Madry(model, attack=PGD(eps=eps, steps=3)).train()
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            method(x[chosen], y[chosen])["loss"].backward()
            optimizer.step()
    return in_pixels(model).eval(), _images(config, size, images)
