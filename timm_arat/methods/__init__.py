"""Training methods: a new one is a file, and a row of `configs`.

_base      the two verbs of a step, and what becomes of a method's networks
_early     a part of a loss that is differentiated before the rest
_frozen    a network that is only used
_divergence, _split, _features   what several methods share: TRADES' attack, the setting split_norm, a representation
_table     how settings are entered in the table, and found
configs    the table: settings and names
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
