"""Backbones that timm does not have and the robust checkpoints, registered with timm on import.

resnet_cifar, wide_resnet_cifar   backbones for small images
arat                              <backbone>_arat: robust weights by name; `register`
robustbench                       the same under RobustBench's names
_weights                          where weights lie: in the package or on the Hub
"""

from . import robustbench as robustbench
from ._weights import WeightsNotFoundError as WeightsNotFoundError
from .arat import register as register
from .resnet_cifar import ResNetCifar as ResNetCifar
from .wide_resnet_cifar import WideResNetCifar as WideResNetCifar
