"""Clean, PGD and AutoAttack accuracy of one model on one data set."""

import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from timm_arat.attacks import PGD, Perturbed
from timm_arat.evaluation._autoattack import standard_attacks
from timm_arat.evaluation._journal import Journal
from timm_arat.evaluation._loop import Attack, Outcome, run_attacks
from timm_arat.evaluation._model import check_model, device_of, fingerprint, frozen, open_model
from timm_arat.evaluation._robustness import Robustness
from timm_arat.evaluation._score import Score
from timm_arat.evaluation._selection import Data, Selection, select
from timm_arat.fold import folded

PGD_STEPS = 20
PACKAGES = ("torch", "timm", "timm_arat", "pyautoattack")
# Forward passes an image, a backward pass counted as two, for the progress bar.
COST = {"clean": 1, "fgsm": 4, "pgd": 3 * PGD_STEPS + 1, "apgd-ce": 300, "apgd-t": 2700, "fab-t": 3600, "square": 5000}

AttackName = Literal["clean", "pgd", "autoattack"]
Norm = Literal["linf", "l2", "l1"]
Stage = tuple[Tensor, dict[str, Attack]]  # positions in x, and the attacks to run there, one after another


def evaluate(
    model: str | Path | nn.Module,
    data: Data,
    *,
    norm: Norm = "linf",
    eps: float | None = None,
    attacks: Sequence[AttackName] = ("clean", "pgd", "autoattack"),
    limit: int | None = None,
    pgd_limit: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    fast: bool = False,
    state: str | Path | None = None,
    indices: Iterable[int] | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    command: str | None = None,
) -> Robustness:
    """Measure how many images a model classifies rightly: unchanged, under 20-step PGD, under standard AutoAttack.

    Everything runs in fp32 without autocast, in evaluation mode, with a random generator of its own; the model and the
    caller's generator are left as they were. An image counts under PGD if it is right before and after. One-step PGD
    (FGSM) runs beside it, for the warnings of masked gradients.

    Args:
        model: What `timm.create_model(..., pretrained=True)` takes, a run's folder, or a module: a timm model, which
            is wrapped by `timm_arat.in_pixels`, or any other that takes images in [0, 1].
        data: A `DataConfig`, a data set of (image, label), or (x, y): NxCxHxW in [0, 1] and N integers.
        norm: Norm of the threat.
        eps: Its radius in pixels of [0, 1]; 8/255 for linf if not given, required for l2 and l1.
        attacks: Which to run; 'clean' always runs, since the attacks start from the images that are right.
        limit: Images for AutoAttack, a stratified subset chosen with `seed`; all if not given.
        pgd_limit: The same for clean and PGD.
        batch_size: Images a batch. Random starts are drawn by batch, so it belongs to the result.
        seed: Of the subsets and of every attack.
        fast: Fold BatchNorms into the layers before them. The logits are equal up to rounding, so what an attack finds
            may differ on an image that it only just breaks, as under another seed; without it, AutoAttack is bitwise
            the official package.
        state: A file to resume from: the same call with the same file goes on after the last finished batch, and gives
            what an undisturbed call gives.
        indices: Positions in the data set that this process evaluates, out of the limited ones; see `merge`.
        name: What to call the model in the result.
        device: Where to put a model given by name (if not given, cuda where there is one); a module stays where it is.
        progress: Show a progress bar; only on a terminal in any case.
        command: What the result keeps as its command; this process's own if not given.

    Raises:
        ValueError: a setting, model or data set cannot be used, or `state` belongs to another evaluation.
    """
    unknown = set(attacks) - {"clean", "pgd", "autoattack"}
    if unknown:
        raise ValueError(f"attacks={tuple(attacks)} has {', '.join(sorted(unknown))}; known: clean, pgd, autoattack")
    for setting, value in (("batch_size", batch_size), ("limit", limit), ("pgd_limit", pgd_limit)):
        if value is not None and value < 1:
            raise ValueError(f"{setting}={value} is not at least 1")
    pgd = PGD(norm=norm, eps=eps, steps=PGD_STEPS)
    quick = {"fgsm": replace(pgd, steps=1, step_size=pgd.radius, random_start=False), "pgd": pgd}
    net, found_name = open_model(model, torch.device(device) if device else None)
    thorough = limit if "autoattack" in attacks else 0
    images = select(data, net, quick=pgd_limit, thorough=thorough, seed=seed, shard=indices)

    with frozen(net):
        num_classes = check_model(net, images.x[:batch_size].to(device_of(net)), images.y)
        stages: list[Stage] = [(torch.arange(len(images.x)), {"clean": _unchanged})]
        settings: dict[str, str] = {}
        if "pgd" in attacks:
            # Two stages, since each starts from the images that are right without an attack.
            stages += [(images.quick, {each: partial(attack.perturb, net)}) for each, attack in quick.items()]
            settings |= {each: repr(attack) for each, attack in quick.items()}
        if "autoattack" in attacks:
            official = standard_attacks(net, num_classes, norm=norm, eps=pgd.radius, seed=seed)
            stages.append((images.thorough, official))
            facts = ["standard", f"{num_classes - 1} targets" * (num_classes < 10), "BatchNorms folded" * fast]
            settings["autoattack"] = ", ".join(filter(None, facts))
        identity = {
            "weights": fingerprint(net),
            "images": images.source.fingerprint,
            "limits": [pgd_limit, thorough],
            "threat": [norm, pgd.radius],
            "seed": seed,
            "batch_size": batch_size,
            "fast": fast,
        }
        journal = Journal(Path(state) if state else None, identity)
        run = partial(run_attacks, net, batch_size=batch_size, seed=seed, journal=journal)
        with folded(net, images.x[:1].to(device_of(net))) if fast else nullcontext():
            measured = _measure(run, images, stages, num_classes, progress)
    return Robustness(
        model=name or found_name,
        weights=str(identity["weights"]),
        data=images.source,
        norm=norm,
        eps=pgd.radius,
        attacks=settings,
        seed=seed,
        batch_size=batch_size,
        versions={"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        device=_device_name(device_of(net)),
        command=command or shlex.join(sys.argv),
        fast=fast,
        **measured,
    )


def _measure(
    run: Callable[..., Outcome], images: Selection, stages: list[Stage], num_classes: int, progress: bool
) -> dict[str, Any]:
    """The fields of a Robustness that take time: scores, zero_gradient and seconds. The first stage is clean."""
    right = torch.ones(len(images.x), dtype=torch.bool)
    scores: dict[str, Score] = {}
    seconds: dict[str, float] = {}
    zero_gradient: dict[str, int] = {}
    total = sum(len(which) * COST[each] for which, attacks in stages for each in attacks)
    # disable=None: nothing is drawn into a pipe or a file.
    with tqdm(total=total, disable=None if progress else True, unit="pass", unit_scale=True) as bar:

        def advance(attack: str, done: int) -> None:
            bar.set_description(attack, refresh=False)
            bar.update(done * COST[attack])

        for which, attacks in stages:
            y = images.y[which]
            outcome = run(attacks, images.x[which], y, right[which], advance=advance)
            right = outcome.robust.get("clean", right)
            for each, robust in outcome.robust.items():
                scores[each] = Score.of(images.positions[which].tolist(), robust.tolist(), y.tolist(), num_classes)
            seconds |= outcome.seconds
            zero_gradient |= outcome.zero_gradient
    return {"scores": scores, "seconds": seconds, "zero_gradient": zero_gradient.get("pgd", 0)}


def _unchanged(x: Tensor, y: Tensor) -> Perturbed:
    return Perturbed(x, torch.zeros(len(x), dtype=torch.bool))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
