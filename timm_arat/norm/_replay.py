"""Gradient checkpointing runs a forward again during backward, when the mode of its first run may be gone.

Inside `norm_branch` each checkpointed function is therefore bound to the mode of that moment. timm, and all code that
calls `torch.utils.checkpoint.checkpoint` by that name, goes through it; what does not is refused, never run wrongly.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
import torch.utils.checkpoint

_bound: ContextVar[bool] = ContextVar("timm_arat_bound_replay", default=False)


@contextmanager
def bound_checkpoints(in_branch: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """While open, functions given to `torch.utils.checkpoint.checkpoint` run inside `in_branch()`, replays too."""
    before = torch.utils.checkpoint.checkpoint

    @wraps(before)
    def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # A compiled graph holds its recompute already; there is no later run to bind.
        if torch.compiler.is_compiling():
            return before(function, *args, **kwargs)

        @wraps(function)
        def bound_function(*a: Any, **k: Any) -> Any:
            token = _bound.set(True)
            try:
                with in_branch():
                    return function(*a, **k)
            finally:
                _bound.reset(token)

        return before(bound_function, *args, **kwargs)

    torch.utils.checkpoint.checkpoint = checkpoint  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.utils.checkpoint.checkpoint = before


def refuse_unbound_replay() -> None:
    """Raises ValueError in a forward that a backward runs and whose mode is therefore unknown."""
    if torch.compiler.is_compiling() or _bound.get():
        return
    if torch._C._current_graph_task_id() != -1:
        raise ValueError(
            "gradient checkpointing recomputes a split norm whose branch is no longer known: run the forward inside "
            "`with norm_branch(model, ...)`, and call checkpointing as `torch.utils.checkpoint.checkpoint(...)` (a "
            "name imported earlier with `from ... import checkpoint` is out of norm_branch's sight)"
        )
