"""Register the models with timm whichever of the two is imported first, without importing timm for it.

timm has no plug-in mechanism that it would ask for further models, and importing it takes seconds, so a finder waits
on `sys.meta_path` for its import. It stays there: others look a package up without importing it (`find_spec`), a first
import may fail, and a module may be reloaded, so no single look-up is known to be the import.
"""

import copy
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class After(MetaPathFinder):
    """Finds the module `name` by the other finders, and calls `then` each time that it was executed."""

    def __init__(self, name: str, then: Callable[[], object]):
        self.name, self.then = name, then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not self else None
            if spec is None:
                continue
            if hasattr(spec.loader, "exec_module"):
                spec = copy.copy(spec)  # a finder may keep its own
                spec.loader = _Loader(spec.loader, self.then)  # it is one by delegation
            return spec
        return None


class _Loader:
    """The loader `wrapped` in everything, and a call of `then` after a module was executed."""

    def __init__(self, wrapped: Any, then: Callable[[], object]):
        self.wrapped, self.then = wrapped, then

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is as if nobody had stepped in between.
        module.__loader__ = self.wrapped
        if module.__spec__ is not None:
            module.__spec__.loader = self.wrapped
        self.wrapped.exec_module(module)
        self.then()

    def __getattr__(self, name: str) -> Any:
        if name in ("wrapped", "then"):  # of an object that is just being copied
            raise AttributeError(name)
        return getattr(self.wrapped, name)


def with_timm() -> None:
    """Import `timm_arat.models` now if timm is loaded, and otherwise as soon as it is."""
    if "timm" in sys.modules:
        importlib.import_module("timm_arat.models")
    elif not any(isinstance(finder, After) for finder in sys.meta_path):
        sys.meta_path.insert(0, After("timm", _register))


def _register() -> None:
    # Where it is there already, it is whole, or another import waits for timm and goes on: to wait for that one here
    # would be a deadlock.
    if "timm_arat.models" not in sys.modules:
        importlib.import_module("timm_arat.models")
