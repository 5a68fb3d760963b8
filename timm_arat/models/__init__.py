"""Backbones that timm does not have, registered with timm on import."""

from .resnet_cifar import ResNetCifar as ResNetCifar
