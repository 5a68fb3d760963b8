"""Training methods: a new one is a file, its settings in `configs` and a row in `build`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
