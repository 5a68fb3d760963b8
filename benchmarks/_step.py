"""Section step: one training step, ours against the textbook's."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import torch

from timm_arat.attacks import PGD
from timm_arat.compiling import compile_failure

from ._machine import device
from ._shapes import Shape
from ._sides import Side, Step, make_step
from ._textbook import TEXTBOOK
from ._timing import in_turn, medians, ratio, summary

STEPS = 10
SIDES: tuple[Side, ...] = ("textbook", "textbook_eval", "ours", "ours_float32")


def measure(shapes: Mapping[str, Shape], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """ARAT at the top, the other methods under their names.

    `ratios` has each side's default: the textbook in float32 with its attack in train mode, ours in half precision
    where the device has it and with its attack in eval mode. `float32` has ours in float32 too, `same_norm_mode` in
    float32 and with both attacks in eval mode. `compiled` has ours by default against ours compiled.
    """
    methods = {name: _measure_method(name, shapes, rounds, say) for name in TEXTBOOK}
    return methods.pop("arat") | {"methods": methods, "compiled": _measure_compiled(shapes, rounds, say)}


def _measure_method(name: str, shapes: Mapping[str, Shape], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    default, single, same, details = {}, {}, {}, {}
    for key, shape in shapes.items():
        attack = PGD(steps=STEPS)
        seconds = in_turn({side: make_step(side, name, shape, attack) for side in SIDES}, rounds)
        default[key] = ratio(seconds, "textbook", "ours")
        single[key] = ratio(seconds, "textbook", "ours_float32")
        same[key] = ratio(seconds, "textbook_eval", "ours_float32")
        details[key] = {"size": shape.size, "batch": shape.batch, "seconds": medians(seconds)}
        say(
            f"step {name} {key}: {default[key]['median']:.2f}x; both in float32 {single[key]['median']:.2f}x, "
            f"and attack in eval mode {same[key]['median']:.2f}x"
        )
    return summary(default) | {"float32": summary(single), "same_norm_mode": summary(same), "shapes": details}


def _measure_compiled(shapes: Mapping[str, Shape], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Our ARAT step against the same compiled, and `warm_up`, seconds of the first compiled one from an empty cache."""
    ratios: dict[str, dict[str, float]] = {}
    warm_up: dict[str, float] = {}
    if failure := compile_failure(device()):
        say(f"step compiled: left out, torch.compile fails here ({failure})")
        shapes = {}
    sides: tuple[Side, ...] = ("ours", "ours_compiled")
    for key, shape in shapes.items():
        torch.compiler.reset()  # models of one class share a limit of compilations
        steps: dict[str, Step] = {side: make_step(side, "arat", shape, PGD(steps=STEPS)) for side in sides}
        with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
            begin = time.perf_counter()
            steps["ours_compiled"]()
            warm_up[key] = round(time.perf_counter() - begin, 1)
            ratios[key] = ratio(in_turn(steps, rounds), "ours", "ours_compiled")
        say(f"step compiled {key}: {ratios[key]['median']:.2f}x eager, after {warm_up[key]:.0f} s of warm-up")
    return summary(ratios) | {"warm_up": warm_up}
