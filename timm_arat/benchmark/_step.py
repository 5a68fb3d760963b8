"""Section step: one training step, ours against the textbook's."""

from collections.abc import Callable, Mapping
from typing import Any

from ..attacks import PGD
from ._shapes import Shape
from ._sides import Side, make_step
from ._textbook import TEXTBOOK
from ._timing import in_turn, medians, ratio, summary

STEPS = 10
SIDES: tuple[Side, ...] = ("textbook", "textbook_eval", "ours", "ours_bf16")


def measure(shapes: Mapping[str, Shape], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """ARAT at the top, the other methods under their names.

    `ratios` has each side's default: the textbook's attack in train mode, ours in eval mode. `same_norm_mode` has the
    attack in eval mode on both sides; `bf16` is the textbook against ours in mixed precision.
    """
    methods = {name: _measure_method(name, shapes, rounds, say) for name in TEXTBOOK}
    return methods.pop("arat") | {"methods": methods}


def _measure_method(name: str, shapes: Mapping[str, Shape], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    default, same, half, details = {}, {}, {}, {}
    for key, shape in shapes.items():
        attack = PGD(steps=STEPS)
        seconds = in_turn({side: make_step(side, name, shape, attack) for side in SIDES}, rounds)
        default[key] = ratio(seconds, "textbook", "ours")
        same[key] = ratio(seconds, "textbook_eval", "ours")
        half[key] = ratio(seconds, "textbook", "ours_bf16")
        details[key] = {"size": shape.size, "batch": shape.batch, "seconds": medians(seconds)}
        say(f"step {name} {key}: {default[key]['median']:.2f}x, attack in eval mode on both {same[key]['median']:.2f}x")
    return summary(default) | {"same_norm_mode": summary(same), "bf16": summary(half), "shapes": details}
