"""One attack after another, each in full batches on the images that all before it left right."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from timm_arat.attacks import Perturbed
from timm_arat.evaluation._journal import Journal, Record
from timm_arat.evaluation._model import device_of

Attack = Callable[[Tensor, Tensor], Perturbed]  # (x, y) of one batch, on the model's device
Keep = Callable[[str, int, Tensor, Tensor, Tensor], object]  # see `run_attacks`


@dataclass(frozen=True)
class Outcome:
    """By attack, in order: N bool, the images that are right after it; images that met a zero gradient; seconds."""

    robust: dict[str, Tensor]
    zero_gradient: dict[str, int]
    seconds: dict[str, float]


def run_attacks(
    model: nn.Module,
    attacks: dict[str, Attack],
    x: Tensor,
    y: Tensor,
    right: Tensor,
    *,
    batch_size: int,
    seed: int,
    journal: Journal,
    advance: Callable[[str, int, bool], object] = lambda name, images, ran: None,
    keep: Keep | None = None,
) -> Outcome:
    """Run the attacks; for AutoAttack's four, images and flags are bitwise those of the official package.

    The global generator is seeded before every batch (AutoAttack's parts do that themselves, too), so a batch depends
    on nothing but its images: this is what makes a resumed run equal to an undisturbed one. Call it under `frozen`.

    Args:
        x, y: NxCxHxW in [0, 1] and N, on any device; batches move to the model's.
        right: N bool, the images to begin with.
        advance: told an attack's name, a number of images it is done with, and whether it attacked them.
        keep: told of a batch, before the journal has it, an attack's name, the batch's number, where its B images are
            in x, what the attack made of them, BxCxHxW, and the model's B answers to that.
    """
    robust = right.clone()
    outcome = Outcome({}, {}, {})
    for name, attack in attacks.items():
        todo = robust.nonzero().flatten()
        advance(name, len(x) - len(todo), False)
        records = []
        attacked: set[int] = set()  # batches; the others come from the journal
        for number, batch in enumerate(todo.split(batch_size) if len(todo) else ()):

            def run(
                name: str = name,
                attack: Attack = attack,
                batch: Tensor = batch,
                number: int = number,
                attacked: set[int] = attacked,
            ) -> Record:
                attacked.add(number)
                torch.manual_seed(seed)
                begin = time.perf_counter()
                found, predicted, zero_gradient = attack_batch(attack, model, x[batch], y[batch])
                broken = predicted != y[batch].cpu()
                seconds = round(time.perf_counter() - begin, 3)
                if keep:
                    keep(name, number, batch, found, predicted)
                return {"broken": batch[broken].tolist(), "zero_gradient": zero_gradient, "seconds": seconds}

            records.append(journal.get_or_run(name, number, run))
            robust[records[-1]["broken"]] = False
            advance(name, len(batch), number in attacked)
        outcome.robust[name] = robust.clone()
        outcome.zero_gradient[name] = sum(record["zero_gradient"] for record in records)
        outcome.seconds[name] = round(sum(record["seconds"] for record in records), 3)
    return outcome


def attack_batch(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """What the attack makes of x, BxCxHxW; the model's B answers to it; and how many images met a zero gradient."""
    device = device_of(model)
    with torch.no_grad():
        x_adv, zero_gradient = attack(x.to(device), y.to(device))
        logits = model(x_adv)
        if not logits.isfinite().all():
            raise ValueError("the model gives NaN or infinite logits: its weights have diverged, or do not fit it")
        predicted = logits.max(dim=1)[1].cpu()  # as the package; argmax may break ties otherwise
    return x_adv.detach().to(x), predicted, int(zero_gradient.sum())
