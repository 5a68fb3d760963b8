"""The analyses of the ARAT paper (arXiv:2402.14648), for any method and network: pure functions, one idea a file.

conflict     gradients of the terms of a loss: cosine, share of weights with opposite signs, norms; whole and by layer
features     pooled features of clean and adversarial images, by branch
mixture      how far the two kinds of image lie from each other, and their statistics by channel
invariance   cosine of the features of an image and of its adversarial counterpart
drift        how much features move between epochs, and running statistics within one
estimate     a mean with n and its 95 % interval
untouched    statistics and generators put back after a measurement
rows         RUN/analysis.jsonl
figures      drawn from these rows, as Figs. 2 to 4 of the paper
table        Markdown, as Table 5 of the paper
"""

from .conflict import Conflict as Conflict
from .conflict import OneTerm as OneTerm
from .conflict import conflict as conflict
from .drift import Spread as Spread
from .drift import drift as drift
from .drift import running_statistics as running_statistics
from .estimate import Estimate as Estimate
from .estimate import estimate as estimate
from .features import Seen as Seen
from .features import see as see
from .invariance import invariance as invariance
from .mixture import compare as compare
from .mixture import distance as distance
from .mixture import statistics as statistics
from .untouched import untouched as untouched
