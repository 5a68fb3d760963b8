"""Our step and the textbook's: the same weights, the same batch, each with everything up to the optimizer's step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from ..attacks import PGD
from ..methods import CONFIGS, Method, build
from ..norm import batch_norms
from ._shapes import Shape
from ._textbook import TEXTBOOK

Side = Literal["ours", "ours_bf16", "ours_checkpointing", "textbook", "textbook_eval"]
Step = Callable[[], None]


def make_step(side: Side, method_name: str, shape: Shape, attack: PGD) -> Step:
    """One training step to be called again and again.

    side: `textbook` attacks in train mode, as the published codes but TRADES'; `textbook_eval` in eval mode, as our
        default. `ours` is the default, and ours_... with `mixed_precision: bf16` and `model.checkpointing: true` of
        a recipe.
    """
    method = _build(method_name, shape, attack)
    x, y = shape.images()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method, x, y = method.to(device).train(), x.to(device), y.to(device)
    if side == "ours_checkpointing":
        method.model.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's protocol
    if side.startswith("ours"):  # as the engine does
        method = method.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    # A learning rate at which random labels do no harm however often it steps.
    optimizer = torch.optim.SGD(method.parameters(), 1e-5, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        if side.startswith("ours"):
            with torch.autocast(device.type, torch.bfloat16, enabled=side == "ours_bf16"):
                loss = method(x, y)["loss"]
        else:
            loss = TEXTBOOK[method_name](method, x, y, "train" if side == "textbook" else "eval")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _build(name: str, shape: Shape, attack: PGD) -> Method:
    model = shape.build()
    config: Any = CONFIGS[name]()
    # Each method's attack climbs its own objective.
    settings: dict[str, Any] = {"attack": replace(attack, loss=config.attack.loss)}
    if name == "arat" and not any(True for _ in batch_norms(model)):
        settings["split_norm"] = "none"
    return build(model, replace(config, **settings))
