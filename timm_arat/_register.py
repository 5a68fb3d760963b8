"""Register the models with timm whichever of the two is imported first, without importing timm for it."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _AfterTimm(MetaPathFinder):
    """Steps in once, when timm is imported: timm's own loader runs, then our models."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_then_register(module: ModuleType) -> None:
            load(module)
            importlib.import_module("timm_arat.models")

        spec.loader.exec_module = load_then_register  # type: ignore[method-assign]
        return spec


def with_timm() -> None:
    """Import `timm_arat.models` now if timm is loaded, and otherwise as soon as it is."""
    if "timm" in sys.modules:
        importlib.import_module("timm_arat.models")
    else:
        sys.meta_path.insert(0, _AfterTimm())
