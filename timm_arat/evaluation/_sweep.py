"""Several threats in one call, with as few attacks as will do: a curve over eps, a worst case of norms."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import PGD
from ..fold import folded
from ..norm import batch_norms
from ._autoattack import ATTACKS, check_size, describe, standard_attacks
from ._checks import check_model
from ._evaluate import configured, unchanged
from ._journal import Journal
from ._loop import Attack, Outcome, run_attacks
from ._model import device_of, fingerprint, frozen, open_model, with_logits
from ._progress import COST, PGD_STEPS, Progress
from ._score import Score
from ._selection import Data, select
from ._threats import Threat, Threats
from ._where import command_line, device_name, versions
from .config import ATTACK_NAMES, EvaluationConfig, Norm


def evaluate_threats(
    model: str | Path | nn.Module,
    data: Data,
    threats: Mapping[Norm, Sequence[float]],
    config: EvaluationConfig | None = None,
    *,
    state: str | Path | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    progress: bool | Callable[[str], None] = True,
    command: str | None = None,
    **settings: Any,
) -> Threats:
    """Accuracy under the strongest of the configured attacks at each of several threats.

    Of one norm the largest eps comes first: what it leaves right is right at every smaller one, so only what it breaks
    is attacked there. Each image is thus attacked in vain, which is what costs, at one eps of each norm; a curve costs
    little more than its smallest eps alone. At the largest eps of a norm the outcome is that of `evaluate` there; at a
    smaller one an image counts as right, too, if the attack at a larger one left it right.

    Args:
        threats: eps in pixels of [0, 1] by norm: {"linf": [2 / 255, 8 / 255], "l2": [0.5], "l1": [12]}.
        config: Its threat is not used, and of its attacks only the strongest, after clean.
        model, data, state, name, device, progress, command, settings: As for `evaluate`, which also looks for masked
            gradients; this does not.

    Raises:
        ValueError: no threat, one that cannot be, or what `evaluate` refuses.
    """
    config = configured(config, settings)
    ordered = _ordered(threats)
    attack = max(config.attacks, key=ATTACK_NAMES.index, default="clean")
    if attack == "clean":
        raise ValueError(f"attacks={config.attacks} has no attack to run at a threat: add pgd or autoattack")
    number = config.autoattack_images if attack == "autoattack" else config.pgd_images
    net, found_name = open_model(model, device)
    fast = config.fast and any(batch_norms(net))  # or there is nothing to fold
    images = select(data, net, pgd_images=number, autoattack_images=number, seed=config.seed, shard=None)
    for each in ordered if attack == "autoattack" else ():
        check_size(images.x, each.norm)

    with frozen(net):
        x = images.x[: config.batch_size].to(device_of(net))
        net = with_logits(net, x[:1])
        num_classes = check_model(net, x, images.y, gradients=True)
        identity = {
            "weights": fingerprint(net),
            "images": images.source.fingerprint,
            "number": number,
            "attack": attack,
            "threats": [[each.norm, each.radius] for each in ordered],
            "seed": config.seed,
            "batch_size": config.batch_size,
            "fast": fast,
            "versions": versions(),
            "device": device_name(device_of(net)),
        }
        journal = Journal(Path(state) if state else None, identity)
        run = partial(
            run_attacks, net, x=images.x, y=images.y, batch_size=config.batch_size, seed=config.seed, journal=journal
        )
        parts = ATTACKS if attack == "autoattack" else ("pgd",)
        version = (
            describe(num_classes, [each.norm for each in ordered]) if attack == "autoattack" else f"PGD-{PGD_STEPS}"
        )
        most = len(images.x) * (1 + len(ordered) * sum(COST[part] for part in parts))
        with (
            folded(net, x[:1]) if fast else nullcontext(),
            Progress(most, progress).watching(net) as shown,
        ):
            run = partial(run, advance=shown.advance)
            every = torch.ones(len(images.x), dtype=torch.bool)
            right = run({"clean": unchanged}, right=every).robust["clean"]
            found: list[Threat] = []
            standing: dict[str, Tensor] = {}
            for each in ordered:
                known = standing.get(each.norm, torch.zeros_like(right))
                todo = right & ~known
                attacks = _named(net, each, attack, num_classes, config.seed)
                outcome: Outcome = run(attacks, right=todo)
                standing[each.norm] = known | list(outcome.robust.values())[-1]
                score = _score(standing[each.norm], images.positions, images.y, num_classes)
                seconds = round(sum(outcome.seconds.values()), 3)
                found.append(Threat(each.norm, each.radius, score, int(todo.sum()), seconds))
    return Threats(
        model=name or found_name,
        weights=str(identity["weights"]),
        data=images.source,
        attack=attack,
        version=version + ", BatchNorms folded" * fast,
        clean=_score(right, images.positions, images.y, num_classes),
        threats=tuple(sorted(found, key=lambda each: (list(threats).index(each.norm), each.eps))),
        seed=config.seed,
        batch_size=config.batch_size,
        versions=versions(),
        device=device_name(device_of(net)),
        command=command or command_line(),
    )


def _ordered(threats: Mapping[Norm, Sequence[float]]) -> list[PGD]:
    """Norm by norm, the largest eps first; PGD knows what a norm and an eps may be."""
    found = [PGD(norm=norm, eps=eps, steps=PGD_STEPS) for norm, every in threats.items() for eps in every]
    if not found:
        raise ValueError(f"threats={dict(threats)} names no eps, wanted such as {{'linf': [4/255, 8/255]}}")
    return sorted(found, key=lambda each: (list(threats).index(each.norm), -each.radius))


def _named(net: nn.Module, pgd: PGD, attack: str, num_classes: int, seed: int) -> dict[str, Attack]:
    """The attacks of one threat, by names of their own, since the journal keeps batches by name."""
    found: dict[str, Attack]
    if attack == "pgd":
        found = {"pgd": partial(pgd.perturb, net)}
    else:
        found = standard_attacks(net, num_classes, norm=pgd.norm, eps=pgd.radius, seed=seed)
    return {f"{pgd.norm} {pgd.radius:g} {name}": each for name, each in found.items()}


def _score(right: Tensor, positions: Tensor, y: Tensor, num_classes: int) -> Score:
    return Score.of(positions.tolist(), right.tolist(), y.tolist(), num_classes)
