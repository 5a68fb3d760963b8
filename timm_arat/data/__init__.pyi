from .config import DataConfig as DataConfig
from .images import Images as Images
from .images import check_images as check_images
from .images import check_labels as check_labels
from .images import tensors as tensors
from .loading import Data as Data
from .loading import load as load
from .strata import subset as subset
