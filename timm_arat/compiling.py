"""torch.compile for a backbone in training steps: element-wise passes are fused, for a warm-up of about a minute."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

# What `auto` takes to outlast its warm-up. By number of steps, not by the clock: a run that is resumed must decide as
# the run that was not. See docs/speed.md for warm-up and gain.
LONG_RUN = 10_000


def compiled_steps(
    model: nn.Module, wish: Literal["off", "auto", "on"], steps: int, say: Callable[[str], None]
) -> Callable[[], AbstractContextManager[Any]]:
    """Compile `model`, a method's backbone, as `wish` says for a run of `steps` steps.

    A step belongs inside the context that is returned. Outside, the backbone runs as it is: measurements have other
    modes and batch sizes, which would be compiled anew. A pass for features (`taps`) by way of `forward_intermediates`
    is not compiled either.
    """
    if wish == "off" or (wish == "auto" and steps < LONG_RUN):
        return nullcontext
    if failure := compile_failure(next(model.parameters()).device):
        say(f"compile={wish}: runs eagerly, since torch.compile fails here ({failure})")
        return nullcontext
    model.compile()
    torch.compiler.set_stance("force_eager")
    return lambda: torch.compiler.set_stance("default")


def compile_failure(device: torch.device) -> str:
    """Why a small function cannot be compiled, such as for want of a C++ compiler; empty if it can."""
    try:
        torch.compile(lambda x: torch.relu(x) * x)(torch.ones(64, device=device))
    except Exception as error:  # torch's backends raise a dozen kinds, and compilers theirs
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error) else type(error).__name__
    return ""
