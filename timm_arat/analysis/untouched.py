"""A measurement that leaves no trace: buffers and generators are put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..generators import forked


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put every buffer of `module` and torch's generators back on the way out, also after an error.

    A pass in train mode moves running statistics, and dropout draws. Differentiate inside: a backward pass refuses
    statistics that were written to after its forward.
    """
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with forked():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
