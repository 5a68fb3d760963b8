"""Honest evaluation: clean, PGD and official AutoAttack accuracy with intervals, as JSON; see `evaluate`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
