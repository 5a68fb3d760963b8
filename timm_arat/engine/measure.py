"""Accuracies on the engine's own images between epochs, over all processes, without a draw from the training RNG."""

from collections.abc import Callable, Iterable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..attacks import PGD
from ..generators import forked
from ..methods import Method
from ..modes import evaluating
from ..norm import branch_if_split

Logits = Callable[[Tensor], Tensor]


@torch.no_grad()
def clean_accuracy(accelerator: Accelerator, method: Method, logits: Logits, x: Tensor, y: Tensor, batch: int) -> float:
    """Accuracy of `logits` (images to NxK) on `x`, `y`, in eval mode; each process takes its share."""
    right = torch.zeros((), device=accelerator.device)
    with evaluating(method):
        for xb, yb in _share(accelerator, x, y, batch):
            right += (logits(xb).argmax(-1) == yb).sum()
    return float(accelerator.reduce(right, "sum")) / len(x)


def robust_accuracy(
    accelerator: Accelerator, model: nn.Module, attack: PGD, x: Tensor, y: Tensor, batch: int, seed: int
) -> float:
    """Accuracy of `model`, which takes [0, 1], under `attack`; the same random starts at every call."""
    right = torch.zeros((), device=accelerator.device)
    # The branch that is deployed; said aloud, since gradient checkpointing runs a forward again in the backward pass.
    with forked(), evaluating(model), branch_if_split(model, "main"):
        torch.manual_seed(seed + accelerator.process_index)
        for xb, yb in _share(accelerator, x, y, batch):
            x_adv = attack(model, xb, yb)
            with torch.no_grad():
                right += (model(x_adv).argmax(-1) == yb).sum()
    return float(accelerator.reduce(right, "sum")) / len(x)


def anywhere(accelerator: Accelerator, *facts: bool) -> list[bool]:
    """Whether it is so on any process, for each of `facts`."""
    if accelerator.num_processes == 1:
        return list(facts)
    total = accelerator.reduce(torch.tensor(facts, dtype=torch.float32, device=accelerator.device), "sum")
    return [bool(count) for count in total]


def average_statistics(accelerator: Accelerator, module: nn.Module) -> None:
    """Average running statistics over processes, in place: each has seen only its share of the images."""
    average_named(accelerator, module.named_buffers())


def average_named(accelerator: Accelerator, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Average the running statistics among named `tensors` over processes, in place."""
    if accelerator.num_processes > 1:
        found = [buffer for name, buffer in tensors if name.endswith(("running_mean", "running_var"))]
        if found:
            together = accelerator.reduce(torch.cat([buffer.flatten() for buffer in found]), "mean")  # one message
            for buffer, mean in zip(found, together.split([buffer.numel() for buffer in found]), strict=True):
                buffer.copy_(mean.view_as(buffer))


def _share(accelerator: Accelerator, x: Tensor, y: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    for xb, yb in zip(x[mine].split(batch), y[mine].split(batch), strict=True):
        yield xb.to(accelerator.device), yb.to(accelerator.device)
