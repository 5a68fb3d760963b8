"""Images and labels: whatever `timm.data.create_dataset` reads, and digits, as pixels in [0, 1] and class indices."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
