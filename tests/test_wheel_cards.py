"""Which files of hub_cards/ the wheel takes along: `.ci/hatch_build.py`."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cards(monkeypatch):
    """The hook's own rule; hatchling is there only while something is built."""
    plugin = types.ModuleType("interface")
    plugin.BuildHookInterface = object
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", plugin)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / ".ci" / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cards


def test_small_checkpoints_ship_and_large_ones_leave_their_weights(cards, tmp_path):
    for name, size in (("small.tag", 6_000_000), ("large.tag", 6_000_001)):
        for file in ("config.json", "results.json", ".eval_results/timm_arat.yaml", "aux_norm.safetensors"):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("x")
        with (tmp_path / name / "model.safetensors").open("wb") as weights:
            weights.truncate(size)
    (tmp_path / "template.md").write_text("x")
    kept = {str(path.relative_to(tmp_path)) for path in cards(tmp_path)}
    facts = {"config.json", "results.json", ".eval_results/timm_arat.yaml"}
    weights = {"model.safetensors", "aux_norm.safetensors"}
    assert kept == {
        "template.md",
        *(f"small.tag/{file}" for file in facts | weights),
        *(f"large.tag/{f}" for f in facts),
    }


def test_the_embedded_checkpoint_ships(cards):
    kept = {path.relative_to(ROOT).as_posix() for path in cards(ROOT / "hub_cards")}
    assert "hub_cards/resnet20_cifar_arat.cifar10_linf8/model.safetensors" in kept and "hub_cards/template.md" in kept
