from .attacks import PGD as PGD
from .evaluation import Robustness as Robustness
from .evaluation import evaluate as evaluate
from .hub import export as export
from .hub import list_robust as list_robust
from .hub import publish as publish
from .methods import ARAT as ARAT
from .methods import ARREST as ARREST
from .methods import DAJAT as DAJAT
from .methods import HAT as HAT
from .methods import LBGAT as LBGAT
from .methods import MART as MART
from .methods import TRADES as TRADES
from .methods import AdvProp as AdvProp
from .methods import Madry as Madry
from .methods import Standard as Standard
from .models import register as register
from .norm import convert_split_norm as convert_split_norm
from .norm import merge_split_norm as merge_split_norm
from .norm import norm_branch as norm_branch
from .pixels import in_pixels as in_pixels

__version__: str
