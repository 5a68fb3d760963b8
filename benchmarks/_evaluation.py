"""Section evaluation: AutoAttack through our evaluator against the official package called plainly."""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pyautoattack
import timm
import torch
from torch import Tensor, nn

from timm_arat.attacks import PGD
from timm_arat.data import DataConfig, load, subset, tensors
from timm_arat.evaluation import evaluate
from timm_arat.evaluation._autoattack import ATTACKS, NORMS
from timm_arat.evaluation._model import open_model
from timm_arat.fold import folded
from timm_arat.methods import Madry
from timm_arat.pixels import in_pixels

from ._limit import Convolutions
from ._machine import device
from ._timing import Sides, in_turn, ratio

EPOCHS = 15  # of the network that is trained here where none is given
PASSES = 50  # rounds of single passes, which are short


def measure(
    model: str | None,
    config: DataConfig,
    eps: float,
    images: int,
    batch: int,
    say: Callable[[str], None],
    epochs: int = EPOCHS,
) -> dict[str, Any]:
    """Seconds of each by the clock and of the processor, and the images on which the two disagree.

    In turn, a quarter of the images at a time, so that a machine that slows down slows both; each runs once.
    """
    net: Any  # a timm model in pixels
    if model is None:
        net, (x, y) = _trained(config, eps, images, epochs)
        name = f"resnet20_cifar, {epochs} epochs of PGD training on {config.name}"
    else:
        net, name = open_model(model, device())
        x, y = test_images(config, net.model.pretrained_cfg["input_size"], images)
    robust: dict[str, list[bool]] = {"ours": [], "pyautoattack": []}
    wall, cpu = dict.fromkeys(robust, 0.0), dict.fromkeys(robust, 0.0)
    by_attack = dict.fromkeys(ATTACKS, 0.0)
    quarter = -(-len(y) // 4)
    for number, (xs, ys) in enumerate(zip(x.split(quarter), y.split(quarter), strict=True)):
        for side in list(robust)[:: 1 if number % 2 == 0 else -1]:
            begin = time.perf_counter(), time.process_time()
            if side == "ours":
                found = evaluate(
                    net, (xs, ys), eps=eps, attacks=("autoattack",), fast=True, batch_size=batch, progress=False
                )
                assert found.autoattack is not None
                robust[side] += map(bool, found.autoattack.correct)
                for attack in ATTACKS:
                    by_attack[attack] += found.seconds[attack]
            else:
                robust[side] += _plainly(net, xs, ys, eps, batch).tolist()
            wall[side] += time.perf_counter() - begin[0]
            cpu[side] += time.process_time() - begin[1]
    result: dict[str, Any] = {
        "model": name,
        "images": len(y),
        "batch": min(quarter, batch),
        "eps": eps,
        "seconds": {side: round(wall[side], 3) for side in robust},
        "cpu_seconds": {side: round(cpu[side], 3) for side in robust},
        "ratio": round(wall["pyautoattack"] / wall["ours"], 4),
        "cpu_ratio": round(cpu["pyautoattack"] / cpu["ours"], 4),
        "robust": {side: sum(flags) for side, flags in robust.items()},
        "disagree": [i for i, (a, b) in enumerate(zip(*robust.values(), strict=True)) if a != b],
        "seconds_by_attack": {attack: round(seconds, 3) for attack, seconds in by_attack.items()},
        "passes": _passes(net, x[:quarter]),
    }
    ratios = f"{result['ratio']:.2f}x, {result['cpu_ratio']:.2f}x of processor time"
    say(f"evaluation: {ratios}, robust {result['robust']}, {len(result['disagree'])} images disagree")
    return result


def _passes(net: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """How many times longer a plain pass takes than `ours`, folded, and than its `convolutions` alone, which is what
    no evaluator that computes them can exceed: `forward`, and with the `gradient` to the images."""
    x = x.to(device())
    plain = copy.deepcopy(net).eval().requires_grad_(False)
    ours = copy.deepcopy(plain)
    convolutions = Convolutions(plain, x)

    def gradient(model: nn.Module) -> None:
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model(x)

    def alone(and_back: bool) -> None:
        convolutions.forward()
        if and_back:
            convolutions.backward(to_weights=False)

    found: dict[str, dict[str, float]] = {}
    with folded(ours, x[:1]):
        for name, run in {"forward": forward, "gradient": gradient}.items():
            sides: Sides = {
                "plain": partial(run, plain),
                "ours": partial(run, ours),
                "convolutions": partial(alone, and_back=name == "gradient"),
            }
            seconds = in_turn(sides, PASSES)
            found[name] = {side: ratio(seconds, "plain", side)["median"] for side in ("ours", "convolutions")}
    return found


def _plainly(net: nn.Module, x: Tensor, y: Tensor, eps: float, batch: int) -> Tensor:
    """Flags of the official package as its documentation calls it, for no more targets than there are."""
    net = copy.deepcopy(net).eval()
    official = pyautoattack.AutoAttack(net, norm=NORMS["linf"], eps=eps, seed=0, version="standard", device=device())
    with torch.no_grad():
        targets = net(x[:1].to(device())).shape[1] - 1
    for part in (official.apgd_targeted, official.fab):
        part.n_target_classes = min(part.n_target_classes, targets)
    _, found = official.run_standard_evaluation(x, y, batch_size=batch)
    return (found == y).cpu()


def test_images(config: DataConfig, size: tuple[int, int, int], images: int) -> tuple[Tensor, Tensor]:
    """Some test images, NxCxHxW, and their classes."""
    test = load(config, input_size=size).test
    assert test is not None
    return tensors(test, subset(test.labels, min(images, len(test.labels)), seed=0))


def _trained(config: DataConfig, eps: float, images: int, epochs: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A small network, partly robust at `eps`, and its test images."""
    torch.manual_seed(0)
    size = (config.in_chans, config.image_size or 8, config.image_size or 8)
    data = load(config, input_size=size)
    assert data.train is not None
    x, y = (t.to(device()) for t in tensors(data.train))
    model = timm.create_model("resnet20_cifar", num_classes=data.num_classes, in_chans=config.in_chans)
    method = Madry(model, attack=PGD(eps=eps, steps=3)).to(device()).train()
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            method(x[chosen], y[chosen])["loss"].backward()
            optimizer.step()
    return in_pixels(model).eval(), test_images(config, size, images)
