from ._compare import Paired as Paired
from ._compare import compare as compare
from ._evaluate import evaluate as evaluate
from ._robustness import ImageSet as ImageSet
from ._robustness import Robustness as Robustness
from ._robustness import merge as merge
from ._score import Score as Score
from ._table import table as table
