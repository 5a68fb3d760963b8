"""Section attack: PGD-10 on one model by our attack and by three libraries, those that are installed."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from timm_arat.attacks import PGD
from timm_arat.data import DataConfig
from timm_arat.evaluation._model import open_model
from timm_arat.pixels import in_pixels

from ._evaluation import test_images
from ._machine import device
from ._shapes import CLASSES, Shape
from ._sides import as_trained
from ._step import STEPS
from ._timing import in_turn, medians, ratio, summary

Run = Callable[[], object]
Maker = Callable[[nn.Module, Tensor, Tensor, PGD], Run]


def _torchattacks(net: nn.Module, x: Tensor, y: Tensor, attack: PGD) -> Run:
    import torchattacks

    theirs = torchattacks.PGD(net, eps=attack.radius, alpha=attack.step_length, steps=attack.steps)
    return lambda: theirs(x, y)


def _foolbox(net: nn.Module, x: Tensor, y: Tensor, attack: PGD) -> Run:
    import foolbox

    theirs = foolbox.attacks.LinfPGD(abs_stepsize=attack.step_length, steps=attack.steps)
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    # `run` alone: calling it would measure its success by one more pass.
    return lambda: theirs.run(model, x, y, epsilon=attack.radius)


def _art(net: nn.Module, x: Tensor, y: Tensor, attack: PGD) -> Run:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model = PyTorchClassifier(
        net, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=CLASSES, clip_values=(0, 1)
    )
    theirs = ProjectedGradientDescentPyTorch(
        model,
        eps=attack.radius,
        eps_step=attack.step_length,
        max_iter=attack.steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    return lambda: theirs.generate(x.cpu().numpy(), y.cpu().numpy())


# By the name on PyPI. They pin old versions of other packages, so they are not among ours: `uv run --with` lays them
# over the environment for one command.
LIBRARIES: dict[str, Maker] = {
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "adversarial-robustness-toolbox": _art,
}


PRECISIONS: dict[str, Literal["auto", "no"]] = {"ours": "auto", "ours_float32": "no"}


def measure(shapes: Mapping[str, Shape], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """`ratios`: how many times longer the fastest library takes than our attack, run as training runs it, in half
    precision where the device has it; `float32`: than ours in the libraries' float32."""
    ratios: dict[str, dict[str, dict[str, float]]] = {side: {} for side in PRECISIONS}
    details = {}
    absent: set[str] = set()
    attack = PGD(steps=STEPS)
    for key, shape in shapes.items():
        x, y = (t.to(device()) for t in shape.images())
        net = in_pixels(shape.build().to(device())).eval()
        sides = {side: _ours(shape, x, y, attack, precision) for side, precision in PRECISIONS.items()}
        for name, make in LIBRARIES.items():
            try:
                sides[name] = make(net, x, y, attack)
            except ImportError:
                absent.add(name)
        seconds = in_turn(sides, rounds)
        each = medians(seconds)
        details[key] = {"examples_per_second": {side: round(shape.batch / each[side], 2) for side in each}}
        libraries = [side for side in sides if side not in ratios]
        if libraries:
            fastest = min(libraries, key=lambda side: each[side])
            for side, found in ratios.items():
                found[key] = ratio(seconds, fastest, side)
            details[key]["fastest_library"] = fastest  # type: ignore[assignment]
            say(
                f"attack {key}: {ratios['ours'][key]['median']:.2f}x {fastest}, "
                f"in float32 {ratios['ours_float32'][key]['median']:.2f}x"
            )
        else:
            say(f"attack {key}: {shape.batch / each['ours']:.1f} images/s, no library is installed")
    way_out = "uv run " + " ".join(f"--with {name}" for name in LIBRARIES) + " python -m benchmarks"
    speeds = summary(ratios["ours"]) | {"float32": summary(ratios["ours_float32"])}
    return speeds | {"shapes": details, "absent": sorted(absent), "with_all": way_out}


def strength(
    model: str, config: DataConfig, eps: float, images: int, batch: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """How many images a trained `model` has right, in float32, after PGD-10 in each precision from the same starts."""
    net: Any  # a timm model in pixels
    net, name = open_model(model, device())
    x, y = (t.to(device()) for t in test_images(config, net.model.pretrained_cfg["input_size"], images))
    robust: dict[str, int] = {}
    for side, mixed_precision in PRECISIONS.items():
        found, x, precision = as_trained(copy.deepcopy(net), x, mixed_precision)
        torch.manual_seed(0)
        robust[side] = 0
        for xs, ys in zip(x.split(batch), y.split(batch), strict=True):
            with precision:
                x_adv = PGD(eps=eps, steps=STEPS)(found, xs, ys)
            with torch.no_grad():
                robust[side] += int((net(x_adv).argmax(1) == ys).sum())
    say(f"attack on {name}: right of {len(y)} after it {robust}")
    return {"model": name, "data": config.name, "images": len(y), "eps": eps, "robust": robust}


def _ours(shape: Shape, x: Tensor, y: Tensor, attack: PGD, mixed_precision: Literal["auto", "no"]) -> Run:
    net, x, precision = as_trained(in_pixels(shape.build().to(x.device)).eval(), x, mixed_precision)

    def run() -> None:
        with precision:
            attack(net, x, y)

    return run
