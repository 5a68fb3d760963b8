"""What accompanies a training run, a file each; `_base` has the protocol.

balance      clean training accuracy before each epoch, for methods that balance their loss by it
warm_start   attacks start from the perturbation of the epoch before
analysis     gradients, features and statistics of the paper's figures, as rows of analysis.jsonl
guard        a watch over single-step training
awp          adversarial weight perturbation
average      EMA and SWA, with norm statistics of their own
"""

from ._base import Batch as Batch
from ._base import Companion as Companion
from ._base import around_step as around_step
from .analysis import Analysis
from .average import Average
from .awp import AWP
from .balance import Balance
from .guard import Guard
from .warm_start import WarmStart

# In the order in which their hooks run: weights that the guard finds to have collapsed do not go into the average, and
# the analysis is of the weights as they are, before they are perturbed.
COMPANIONS: tuple[type[Companion], ...] = (Balance, WarmStart, Guard, Analysis, AWP, Average)
