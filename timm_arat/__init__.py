"""Adversarially robust image classifiers for timm: ARAT training, split norms, attacks, honest evaluation.

import timm, timm_arat

model = timm.create_model("resnet20_cifar")
method = timm_arat.ARAT(model, attack=timm_arat.PGD(eps=8 / 255, steps=10))
terms = method(x, y)                 # images in [0, 1]; terms["loss"].backward()
timm_arat.merge_split_norm(model)    # a plain timm model again
"""

from importlib.metadata import version

import lazy_loader

from . import _register

__version__ = version("timm_arat")
# The names are in __init__.pyi and load on first use: torch and timm take seconds, `--help` and errors should not.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_register.with_timm()
