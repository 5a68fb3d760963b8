"""Backbones that timm does not have and the robust checkpoints, registered with timm on import.

resnet_cifar, wide_resnet_cifar   backbones for small images
arat                              <backbone>_arat: robust weights by name; `register`
robustbench                       the same under RobustBench's names
_weights                          where weights lie: in the package or on the Hub
_create                           `create`: timm's create_model, which loads safetensors only
foreign                           the explicit way for other people's .pth files
_json, _safetensors, _secrets     files of others, read within limits; what no message may hold
"""

from . import robustbench as robustbench
from ._create import create as create
from ._create import exported as exported
from ._weights import WeightsNotFoundError as WeightsNotFoundError
from .arat import register as register
from .foreign import load_foreign as load_foreign
from .resnet_cifar import ResNetCifar as ResNetCifar
from .wide_resnet_cifar import WideResNetCifar as WideResNetCifar
