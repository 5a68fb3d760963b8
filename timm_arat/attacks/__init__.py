"""Attacks used in training and in quick evaluation. AutoAttack is in `timm_arat.evaluation`.

_pgd          the settings of PGD, free of torch
_search       its loop
_objectives   what it climbs
_balls        start, step and projection of each norm
_quiet        running a model without leaving a trace in it
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
