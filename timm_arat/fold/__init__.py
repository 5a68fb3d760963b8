"""Run a frozen network with its BatchNorms folded into the layers before them; the ground floor, true of any network.

In eval mode a BatchNorm is a constant scale and shift of each channel. Behind a convolution or a linear layer both go
into that layer's weight and bias, and the norm costs nothing any more: no pass over the activations, forward or
backward, and none kept for it. Under autocast a weight is also cast once, which autocast does at every pass where the
weight is frozen.

_plan     what is found, kept and put back
_record   the pass by which it is found
_layer    one norm into one layer
"""

from ._plan import Plan as Plan
from ._plan import folded as folded

__all__ = ["Plan", "folded"]
