"""Try a checkpoint in a browser: `python -m timm_arat.demo`; see `launch`.

_zoo      which checkpoints there are, and one opened
_attack   prepare a picture, attack it, say what came of it
_shown    what the page's components show, as plain values
_page     the page; gradio lives here only
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
