"""Clean, PGD and AutoAttack accuracy of one model on one data set."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timm_arat.attacks import PGD, Perturbed
from timm_arat.evaluation._adversarial import Adversarial, check_folder
from timm_arat.evaluation._autoattack import check_size, describe, standard_attacks
from timm_arat.evaluation._blind import blind_share
from timm_arat.evaluation._checks import check_model
from timm_arat.evaluation._journal import Journal
from timm_arat.evaluation._kept import Kept, hashed
from timm_arat.evaluation._loop import Attack, Outcome, run_attacks
from timm_arat.evaluation._model import device_of, fingerprint, frozen, open_model, with_logits
from timm_arat.evaluation._progress import COST, PGD_STEPS, Progress
from timm_arat.evaluation._robustness import Robustness
from timm_arat.evaluation._score import Score
from timm_arat.evaluation._selection import Data, Selection, label_names, select
from timm_arat.evaluation._unbounded import unbounded_attack
from timm_arat.evaluation._where import command_line, device_name, versions
from timm_arat.evaluation.config import EvaluationConfig
from timm_arat.fold import folded
from timm_arat.names import nearest
from timm_arat.norm import batch_norms

Stage = tuple[Tensor, dict[str, Attack]]  # positions in x, and the attacks to run there, one after another


def evaluate(
    model: str | Path | nn.Module,
    data: Data,
    config: EvaluationConfig | None = None,
    *,
    state: str | Path | None = None,
    indices: Iterable[int] | None = None,
    name: str | None = None,
    save_adversarial: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool | Callable[[str], None] = True,
    command: str | None = None,
    **settings: Any,
) -> Robustness:
    """Measure how many images a model classifies rightly: unchanged, under 20-step PGD, under standard AutoAttack.

    Everything runs in fp32 without autocast, in evaluation mode, with a random generator of its own; the model and the
    caller's generator are left as they were. An image counts under PGD if it is right before and after. One-step PGD
    (FGSM) runs beside it, for the warnings of masked gradients.

    Args:
        model: What `timm.create_model(..., pretrained=True)` takes, a run's folder, or a module: a timm model, which
            is wrapped by `timm_arat.in_pixels`, or any other that takes images in [0, 1] and gives NxK logits, or an
            object that has them as `logits`.
        data: A `DataConfig`, whose classes are matched with the model's by name where both have names; a data set of
            (image, label); a loader of their batches that does not shuffle; or (x, y): NxCxHxW in [0, 1] and N
            integers.
        config: Threat, attacks and numbers of images, see `EvaluationConfig`; the threat is linf 8/255 if not given.
        state: A file to resume from: the same call with the same file goes on after the last finished batch, and gives
            what an undisturbed call gives.
        indices: Positions in the data set that this process evaluates, out of the chosen ones; see `merge`.
        name: What to call the model in the result.
        save_adversarial: A new folder for the adversarial images, `adversarial.safetensors` (see `Adversarial`), and a
            picture of some of them, `adversarial.png`, where matplotlib is installed. With `state` they are kept
            beside it until the end, so that they are complete after a resume; a state that was begun without them is
            refused.
        device: Where to put a model given by name (if not given, cuda where there is one); a module stays where it is.
        progress: Show a progress bar on a terminal, and elsewhere a line a minute, or hand that line to this function.
        command: What the result keeps as its command; this process's own if not given.
        settings: Fields of `EvaluationConfig` by name, in the place of those of `config`: `eps=4 / 255`.

    Raises:
        ValueError: a setting, model or data set cannot be used, or `state` or `save_adversarial` holds something else.
        TypeError: `settings` has a name that `EvaluationConfig` does not.
    """
    config = configured(config, settings)
    assert config.norm is not None and config.eps is not None
    if save_adversarial is not None:
        if not {"pgd", "autoattack"} & set(config.attacks):
            raise ValueError(
                f"save_adversarial: attacks={config.attacks} makes no adversarial image: add pgd or autoattack"
            )
        check_folder(Path(save_adversarial))
    attacks, seed, batch_size = config.attacks, config.seed, config.batch_size
    pgd = PGD(norm=config.norm, eps=config.eps, steps=PGD_STEPS)
    net, found_name = open_model(model, device)
    class_names = tuple(label_names(net) or ())
    fast = config.fast and any(batch_norms(net))  # or there is nothing to fold
    autoattack_images = config.autoattack_images if "autoattack" in attacks else 0
    images = select(
        data, net, pgd_images=config.pgd_images, autoattack_images=autoattack_images, seed=seed, shard=indices
    )

    if "autoattack" in attacks:
        check_size(images.x, pgd.norm)

    with frozen(net):
        x = images.x[:batch_size].to(device_of(net))
        net = with_logits(net, x[:1])
        num_classes = check_model(net, x, images.y, gradients=bool({"pgd", "autoattack"} & set(attacks)))
        stages: list[Stage] = [(torch.arange(len(images.x)), {"clean": unchanged})]
        ran: dict[str, str] = {}
        blind = 0.0
        if "pgd" in attacks:
            blind = blind_share(net, x[0])
            # One stage each, since each starts from the images that are right without an attack.
            unbounded, grey = unbounded_attack(net, images)
            plain = {"fgsm": replace(pgd, steps=1, step_size=pgd.radius, random_start=False), "pgd": pgd}
            stages += [(images.pgd, {each: partial(attack.perturb, net)}) for each, attack in plain.items()]
            stages.append((grey, {"unbounded": partial(unbounded.perturb, net)}))
            ran |= {each: repr(attack) for each, attack in (plain | {"unbounded": unbounded}).items()}
        if "autoattack" in attacks:
            official = standard_attacks(net, num_classes, norm=pgd.norm, eps=pgd.radius, seed=seed)
            stages.append((images.autoattack, official))
            ran["autoattack"] = describe(num_classes, [pgd.norm]) + ", BatchNorms folded" * fast
        identity = {
            "weights": fingerprint(net),
            "images": images.source.fingerprint,
            "pgd_images": config.pgd_images,
            "autoattack_images": autoattack_images,
            "threat": [pgd.norm, pgd.radius],
            "seed": seed,
            "batch_size": batch_size,
            "fast": fast,
            "versions": versions(),
            "device": device_name(device_of(net)),
        }
        journal = Journal(Path(state) if state else None, identity)
        kept, this = None, hashed({**identity, "attacks": attacks})
        if save_adversarial is not None:
            check_folder(Path(save_adversarial), this)
            kept = Kept(journal, hashed(identity), images.x)
        run = partial(run_attacks, net, batch_size=batch_size, seed=seed, journal=journal)
        with folded(net, x[:1]) if fast else nullcontext():
            measured = _measure(run, net, images, stages, num_classes, progress, kept)
    result = Robustness(
        model=name or found_name,
        weights=str(identity["weights"]),
        data=images.source,
        norm=pgd.norm,
        eps=pgd.radius,
        attacks=ran,
        seed=seed,
        batch_size=batch_size,
        versions=versions(),
        device=device_name(device_of(net)),
        command=command or command_line(),
        fast=fast,
        blind=blind,
        class_names=class_names,
        **measured,
    )
    if kept and save_adversarial is not None:
        Adversarial.collect(images, kept).save(Path(save_adversarial), result, this)
    return result


def configured(config: EvaluationConfig | None, settings: dict[str, Any]) -> EvaluationConfig:
    """`config` with `settings` in it and a threat; TypeError for a setting that it does not have."""
    known = [field.name for field in fields(EvaluationConfig)]
    for name in settings.keys() - set(known):
        raise TypeError(f"evaluate has no setting {name!r}: {nearest(name, known)} It has {', '.join(known)}")
    return replace(config or EvaluationConfig(), **settings).with_threat()


def _measure(
    run: Callable[..., Outcome],
    net: nn.Module,
    images: Selection,
    stages: list[Stage],
    num_classes: int,
    show: bool | Callable[[str], None],
    kept: Kept | None,
) -> dict[str, Any]:
    """The fields of a Robustness that take time: scores, zero_gradient and seconds. The first stage is clean."""
    right = torch.ones(len(images.x), dtype=torch.bool)
    scores: dict[str, Score] = {}
    seconds: dict[str, float] = {}
    zero_gradient: dict[str, int] = {}
    total = sum(len(which) * COST[each] for which, attacks in stages for each in attacks)
    with Progress(total, show).watching(net) as progress:
        for which, attacks in stages:
            x, y = images.x[which], images.y[which]
            keep = kept.among(which) if kept else None
            outcome = run(attacks, x, y, right[which], advance=progress.advance, keep=keep)
            right = outcome.robust.get("clean", right)
            for each, robust in outcome.robust.items():
                scores[each] = Score.of(images.positions[which].tolist(), robust.tolist(), y.tolist(), num_classes)
            seconds |= outcome.seconds
            zero_gradient |= outcome.zero_gradient
    return {"scores": scores, "seconds": seconds, "zero_gradient": zero_gradient.get("pgd", 0)}


def unchanged(x: Tensor, y: Tensor) -> Perturbed:
    return Perturbed(x, torch.zeros(len(x), dtype=torch.bool))
