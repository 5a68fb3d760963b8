"""Our names are in timm's registry whatever looked timm up, imported it, failed to or reloaded it before."""

import importlib
import importlib.machinery
import importlib.resources
import importlib.util
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm

from timm_arat._register import After


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[int]]]:
    """The name of a package that can be imported, and a list that grows with each call after its import."""
    name, calls = "looked_for_package", []
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("import time\ntime.sleep(0.05)\nvalue = 1\n")
    (tmp_path / name / "part.py").write_text("value = 2\n")
    (tmp_path / name / "data.txt").write_text("text")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [After(name, lambda: calls.append(1)), *sys.meta_path])
    yield name, calls
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_a_look_up_is_no_import(package):
    name, calls = package
    for _ in range(2):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin.endswith("__init__.py") and not calls
    assert spec.loader.get_source(name).startswith("import time"), "a loader in everything"
    importlib.import_module(name)
    assert calls == [1]
    importlib.import_module(f"{name}.part")
    assert calls == [1]


def test_the_module_has_its_own_loader(package):
    name, _ = package
    module = importlib.import_module(name)
    plain = importlib.import_module("json")
    assert type(module.__loader__) is type(module.__spec__.loader) is type(plain.__loader__)
    assert "value = 1" in inspect.getsource(module)
    assert importlib.resources.files(name).joinpath("data.txt").read_text() == "text"


def test_a_first_import_that_failed(package, tmp_path):
    name, calls = package
    file = tmp_path / name / "__init__.py"
    whole = file.read_text()
    file.write_text("raise ImportError('no libtorch')")
    with pytest.raises(ImportError, match="no libtorch"):
        importlib.import_module(name)
    assert not calls
    file.write_text(whole + "# of another size than what is cached\n")
    importlib.invalidate_caches()
    assert importlib.import_module(name).value == 1 and calls == [1]


def test_a_reload(package):
    name, calls = package
    module = importlib.import_module(name)
    assert importlib.reload(module) is module and calls == [1, 1], "what is called must bear it, and is a second no-op"
    assert type(module.__loader__).__name__ == "SourceFileLoader"


def test_threads(package):
    name, calls = package
    together, failed = threading.Barrier(8), []

    def use() -> None:
        together.wait()
        try:
            importlib.util.find_spec(name)
            importlib.import_module(name)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed and calls == [1]


def test_other_packages_are_left_alone(package):
    spec = importlib.util.find_spec("colorsys")
    assert type(spec.loader).__name__ == "SourceFileLoader" and sys.meta_path[0].find_spec("colorsys") is None
    assert importlib.util.find_spec("no_such_package_anywhere") is None


def test_a_package_that_is_missing_stays_missing(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [After("no_such_package_anywhere", pytest.fail), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_package_anywhere")


def test_a_finder_that_keeps_its_specs(package):
    """We change a copy, so a second look-up wraps the plain loader and not our own."""
    name, _ = package
    real = importlib.machinery.PathFinder.find_spec(name)
    kept = type("Keeps", (), {"find_spec": staticmethod(lambda wanted, *_: real if wanted == name else None)})
    sys.meta_path.insert(1, kept)
    for _ in range(2):
        assert importlib.util.find_spec(name).loader.wrapped is real.loader


LOOK_UP = "import importlib.util, timm_arat; assert importlib.util.find_spec('timm')"
# What transformers does when it is imported: is it there, where, and which version; in threads and for parts, too.
AVAILABLE = """
import importlib.metadata, importlib.util, sys, threading, timm_arat
def is_available(name):
    return importlib.util.find_spec(name) is not None and importlib.metadata.version(name)
assert is_available('timm') and is_available('torch')
assert 'timm' not in sys.modules
threads = [threading.Thread(target=importlib.import_module, args=(name,)) for name in ('timm', 'timm_arat.models')]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert importlib.util.find_spec('timm.layers')
"""
RELOADED = "import importlib, timm_arat, timm; importlib.reload(timm); importlib.reload(timm_arat)"
FAILED = """
import sys, timm_arat
sys.modules['torchvision'] = None  # as where it is broken
try: import timm
except ImportError: pass
else: raise AssertionError
del sys.modules['torchvision']
for name in [name for name in sys.modules if name.split('.')[0] == 'timm']: del sys.modules[name]
"""


@pytest.mark.parametrize(
    "before", [LOOK_UP, AVAILABLE, RELOADED, FAILED], ids=["look-up", "threads", "reload", "failed"]
)
def test_every_name_is_registered_once(before: str) -> None:
    names = timm.list_models(["*_arat", "*_cifar"])  # as they are registered by the ordinary import
    assert {"resnet50_arat", "resnet20_cifar"} <= set(names)
    code = f"{before}\nimport timm\nprint(*timm.list_models(['*_arat', '*_cifar']))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:timm_arat", "-c", code], capture_output=True, text=True, timeout=240
    )
    assert done.stdout.split() == names, done.stderr
    assert "Overwriting" not in done.stderr, "timm warns of a name that is registered twice"
