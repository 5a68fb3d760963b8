"""How strong our attack is beside other libraries': `python -m benchmarks.strength --into docs/attacks.md`.

Every attack gets the same network and the same images, those that the network has right. What is left right goes into a
JSON and between `<!-- strength:begin -->` and its end in the document. A library that is not installed is left out with
a word. They pin old versions of other packages, so they are not among ours: `uv run --with torchattacks --with foolbox
--with adversarial-robustness-toolbox python -m benchmarks.strength` lays them over the environment for one command.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_arat import PGD
from timm_arat.config import cli, read
from timm_arat.data import DataConfig, load, tensors
from timm_arat.data.strata import subset
from timm_arat.evaluation import eps_text
from timm_arat.evaluation._model import open_model
from timm_arat.evaluation._score import wilson

from .document import check_block, write_block

Json = dict[str, Any]
# From the network, images and labels (N) to adversarial images; None where a library has no such attack.
Run = Callable[[nn.Module, Tensor, Tensor], Tensor] | None
APGD = "APGD (pyautoattack)"
LONG = 100  # APGD's own number of steps, the yardstick


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        into: The Markdown document.
        output: The JSON; a finished one is rendered without measuring where `images` is 0.
        model: What timm.create_model takes, or a run's folder.
        data: The images.
        images: Number of test images, drawn in each class alike.
        steps: Numbers of steps of every attack but APGD.
        linf: Radius in pixels of [0, 1].
        l2: Likewise.
        l1: Likewise.
    """

    into: str = "docs/attacks.md"
    output: str = "docs/attacks/strength.json"
    model: str = "resnet20_cifar_arat"
    data: DataConfig = field(default_factory=lambda: DataConfig(name="hfds/uoft-cs/cifar10", input_key="img"))
    images: int = 200
    steps: tuple[int, ...] = (3, 10, 20)
    linf: float = 8 / 255
    l2: float = 0.5
    l1: float = 12.0


def _ours(attack: PGD) -> Run:
    return attack


def _torchattacks(attack: PGD) -> Run:
    import torchattacks

    if attack.norm == "l1":
        return None
    kind = torchattacks.PGD if attack.norm == "linf" else torchattacks.PGDL2
    settings = dict(eps=attack.radius, alpha=attack.step_length, steps=attack.steps)
    return lambda net, x, y: kind(net, **settings)(x, y)


def _foolbox(attack: PGD) -> Run:
    import foolbox

    if attack.norm == "l1":  # its own length and share of entries: ours means something else
        theirs = foolbox.attacks.SparseL1DescentAttack(steps=attack.steps, random_start=True)
    else:
        kind = foolbox.attacks.LinfPGD if attack.norm == "linf" else foolbox.attacks.L2PGD
        theirs = kind(abs_stepsize=attack.step_length, steps=attack.steps)
    return lambda net, x, y: theirs.run(foolbox.PyTorchModel(net, bounds=(0, 1)), x, y, epsilon=attack.radius)


def _art(attack: PGD) -> Run:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    length = min(2.5 * attack.radius / attack.steps, attack.radius)

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            classes = net(x[:1]).shape[1]
        model = PyTorchClassifier(
            net, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=classes, clip_values=(0, 1)
        )
        order = {"linf": "inf", "l2": 2, "l1": 1}[attack.norm]
        settings: Json = dict(eps=attack.radius, eps_step=length, max_iter=attack.steps, num_random_init=1)
        theirs = ProjectedGradientDescentPyTorch(model, norm=order, batch_size=len(x), verbose=False, **settings)
        return torch.from_numpy(theirs.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    return run


def _apgd(attack: PGD) -> Run:
    from pyautoattack.autopgd_base import APGDAttack

    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[attack.norm]
    return lambda net, x, y: APGDAttack(
        net, n_iter=attack.steps, norm=name, eps=attack.radius, device=x.device, use_largereps=attack.norm == "l1"
    ).perturb(x, y)


SIDES: dict[str, Callable[[PGD], Run]] = {
    "ours": _ours,
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "adversarial-robustness-toolbox": _art,
    APGD: _apgd,
}


def measure(options: Options, say: Callable[[str], None]) -> Json:
    """`left[norm][side][steps]`: images still right and seconds; written after each."""
    net, name = open_model(options.model)
    net.eval().requires_grad_(False)
    device = next(net.parameters()).device
    timm_model: Any = net.model
    test = load(options.data, input_size=timm_model.pretrained_cfg["input_size"], splits=("test",)).test
    assert test is not None
    x, y = (t.to(device) for t in tensors(test, subset(test.labels, min(options.images, len(test.labels)), seed=0)))
    right = _right(net, x, y)
    found: Json = {
        "model": name, "data": options.data.name, "images": len(y), "clean": int(right.sum()), "device": str(device),
        "versions": {each: version(each) for each in ("torch", "timm", "pyautoattack")},
        "eps": {norm: getattr(options, norm) for norm in ("linf", "l2", "l1")}, "left": {}, "absent": [],
    }  # fmt: skip
    # The yardstick first and the longest next, so that a measurement that is cut short still says something.
    for steps in (LONG, *sorted(options.steps, reverse=True)):
        for norm, eps in found["eps"].items():
            for side, make in SIDES.items():
                if (side == APGD) != (steps == LONG) or side in found["absent"]:
                    continue
                try:
                    run = make(PGD(norm=norm, eps=eps, steps=steps))
                except ImportError:
                    found["absent"].append(side)
                    say(f"{side} is not installed and is left out")
                    continue
                if run is None:
                    continue
                cell = _attacked(run, net, x[right], y[right], norm, eps)
                found["left"].setdefault(norm, {}).setdefault(side, {})[str(steps)] = cell
                if side not in (*found["versions"], "ours", APGD):
                    found["versions"][side] = version(side)
                say(f"{norm} {side} {steps} steps: {cell['right']} of {len(y)} right, {cell['seconds']} s")
                Path(options.output).parent.mkdir(parents=True, exist_ok=True)
                Path(options.output).write_text(json.dumps(found, indent=1) + "\n")
    return found


def _attacked(run: Callable[..., Tensor], net: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Json:
    torch.manual_seed(0)
    started = time.perf_counter()
    x_adv = run(net, x, y).detach()
    seconds = time.perf_counter() - started
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    reach = torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), ord=order, dim=1)
    # A point outside ball or box is no success, and would make a library look stronger than it is.
    outside = (reach > eps * 1.001) | ((x_adv < -1e-6) | (x_adv > 1 + 1e-6)).flatten(1).any(1)
    left = int((_right(net, x_adv, y) | outside).sum())
    return {"right": left, "outside": int(outside.sum()), "seconds": round(seconds, 1)}


@torch.no_grad()
def _right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return net(x).argmax(1) == y


def render(found: Json) -> list[str]:
    """Markdown lines: a row an attack, in each norm the share left right by steps."""
    n = found["images"]
    lines = []
    for norm, sides in found["left"].items():
        steps = sorted({int(each) for cells in sides.values() for each in cells})
        eps = found["eps"][norm]
        lines += [f"**{norm}, eps {eps_text(eps) if norm == 'linf' else f'{eps:g}'}**", "",
                  f"| attack | {' | '.join(f'{each} steps' for each in steps)} |",
                  "|---" * (1 + len(steps)) + "|"]  # fmt: skip
        for side in (each for each in SIDES if each in sides):
            cells = (_cell(sides[side][str(each)], n) if str(each) in sides[side] else "" for each in steps)
            lines.append(f"| {side} | {' | '.join(cells)} |")
        lines.append("")
    versions = ", ".join(f"{name} {each}" for name, each in found["versions"].items())
    lines.append(
        f"Right of {n} images of {found['data']} in %, with the 95 % interval: {found['model']}, right on "
        f"{100 * found['clean'] / n:.1f} % of them unattacked; {versions}."
    )
    if found["absent"]:
        lines.append(f"Not installed when this was measured: {', '.join(found['absent'])}.")
    return lines


def _cell(cell: Json, n: int) -> str:
    low, high = wilson(cell["right"], n)
    outside = f", {cell['outside']} outside" if cell["outside"] else ""
    return f"{100 * cell['right'] / n:.1f} ({100 * low:.0f} to {100 * high:.0f}; {cell['seconds']:.0f} s{outside})"


@cli
def main() -> None:
    """Measure, and write the JSON and the document."""
    options = read(Options, variants={}, prog="python -m benchmarks.strength", description="Attacks side by side.")
    document = Path(options.into)
    check_block(document, "strength")
    if options.images:
        found = measure(options, lambda line: print(line, flush=True))
    else:
        found = json.loads(Path(options.output).read_text())
    write_block(document, "strength", render(found))
    print(f"{document}, {options.output}")


if __name__ == "__main__":
    main()
