"""Checkpoints: what they hold, that they hold nothing that runs code, and what a damaged one is answered with."""

import errno
import json
import pickle
from pathlib import Path

import helpers_engine
import pytest
import torch
from helpers_engine import forget, fresh_accelerate, session_of  # noqa: F401  # a fixture
from safetensors import SafetensorError
from torch import nn

from timm_arat.engine import checkpoint, state
from timm_arat.engine.checkpoint import Position
from timm_arat.engine.config import AverageConfig, GuardConfig, TrainConfig
from timm_arat.engine.log import Log
from timm_arat.engine.loop import Loop
from timm_arat.engine.session import Session
from timm_arat.engine.state import load_tree, save_tree
from timm_arat.engine.train import train
from timm_arat.methods import ARATConfig


def log(session: Session) -> Log:
    return Log(session.accelerator, session.folder, 10)


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tiny(folder: Path, **changes) -> TrainConfig:
    """Two epochs of ARAT."""
    return helpers_engine.tiny(folder, **{"method": ARATConfig(weight=5.0), **changes})


@pytest.fixture
def session(tmp_path) -> Session:
    return session_of(tiny(tmp_path, keep_checkpoints=1))


def same_tree(a, b) -> bool:
    """Equal in value, type and, of tensors, in data type and layout."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b) and a.is_contiguous() == b.is_contiguous()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return a == b


def test_a_tree_comes_back_as_it_was(tmp_path):
    shared = torch.arange(6.0)
    tree = {
        "numbers": {0: 1, 7: {"deep": (1, (2.5, None), [])}},
        "plain": [True, False, None, 3, -0.25, "text", ""],
        "$reserved": {"$tensor": "not one"},
        "tensors": [torch.randn(2, 3, dtype=torch.bfloat16), torch.tensor([1, 2]), torch.tensor(3, dtype=torch.uint8)],
        "bools": torch.tensor([True, False]),
        "shared": (shared, shared, shared[2:], shared.view(2, 3).t()),
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.5),
        "dtypes": [torch.bfloat16, torch.float32],  # as Big Vision's Adafactor has them
    }
    save_tree(tree, tmp_path / "tree")
    assert same_tree(load_tree(tmp_path / "tree"), tree)


def test_an_optimizer_comes_back_as_it_was(tmp_path):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias], "lr": 0.5}])
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    save_tree(optimizer.state_dict(), tmp_path / "tree")
    found = load_tree(tmp_path / "tree")
    assert same_tree(found, optimizer.state_dict())
    assert 0 in found["state"]  # a number, as torch asks for it


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", lambda: None, object()], ids=["set", "bytes", "function", "object"]
)
def test_what_is_neither_tensor_nor_plain_is_refused_by_its_place(tmp_path, value):
    with pytest.raises(TypeError, match=f"companions/mine/1 is a {type(value).__name__}"):
        save_tree({"companions": {"mine": [0, value]}}, tmp_path / "tree")


def test_a_checkpoint_holds_no_pickle_and_everything_that_a_resume_needs(tmp_path):
    config = tiny(tmp_path, guard=GuardConfig(every=2, images=32), average=AverageConfig(kind="ema"), warm_start=True)
    session = session_of(config)
    Loop(session, Log(session.accelerator, tmp_path, 10)).run()
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert {path.name for path in newest.iterdir()} == {
        "manifest.json", "training.json", "training.safetensors", "generators-0.json", "generators-0.safetensors",
    }  # fmt: skip
    for path in newest.iterdir():
        content = path.read_bytes()
        if path.suffix == ".json":
            json.loads(content)
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError)):
            pickle.loads(content)
        assert content[:2] not in (b"PK", b"\x80\x04", b"\x80\x02", b"\x80\x05")  # torch.save's zip, and pickles
    held = load_tree(newest / "training")
    assert held.keys() == {"method", "optimizer", "schedule", "scaler", "companions", "log"}
    assert list(held["companions"]) == ["Balance", "WarmStart", "Guard", "Average"]
    assert held["companions"]["Guard"]["snapshot"]["step"] > 0
    assert same_tree(held["method"], dict(session.method.state_dict()))


def damages(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_flipped_bit_in_any_file_is_noticed_and_named(session, tmp_path):
    saved = checkpoint.save(session, log(session), tmp_path / "checkpoints", Position(1, 0))
    before = damages(saved)
    for name, content in before.items():
        for place in (0, len(content) // 2, len(content) - 1):
            (saved / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(ValueError, match=f"{name}.*start afresh"):
                checkpoint.load(session, log(session), saved)
        (saved / name).write_bytes(content)
    assert checkpoint.load(session, log(session), saved) == Position(1, 0)


@pytest.mark.parametrize("damage", ["gone", "empty", "half", "zip", "pickle"])
def test_a_damaged_file_is_refused_by_its_name_before_anything_changes(session, tmp_path, damage):
    saved = checkpoint.save(session, log(session), tmp_path / "checkpoints", Position(1, 0))
    for name, content in damages(saved).items():
        path = saved / name
        match damage:
            case "gone":
                path.unlink()
            case "empty":
                path.write_bytes(b"")
            case "half":
                path.write_bytes(content[: len(content) // 2])
            case "zip":
                path.write_bytes(b"PK\x03\x04" + content)
            case "pickle":
                path.write_bytes(pickle.dumps(Planted(tmp_path)))
        weights = {key: value.clone() for key, value in session.method.state_dict().items()}
        with pytest.raises(ValueError, match=f"cannot be resumed.*{name}.*start afresh"):
            checkpoint.load(session, log(session), saved)
        assert not (tmp_path / "it ran").exists()
        assert same_tree(dict(session.method.state_dict()), weights)
        path.write_bytes(content)


class Planted:
    """An object whose unpickling leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.touch, (self.folder / "it ran",)


def test_the_planted_pickle_would_have_run(tmp_path):
    pickle.loads(pickle.dumps(Planted(tmp_path)))
    assert (tmp_path / "it ran").exists()


def test_a_manifest_that_leaves_out_a_file_is_refused(session, tmp_path):
    saved = checkpoint.save(session, log(session), tmp_path / "checkpoints", Position(1, 0))
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["files"]["training.safetensors"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        checkpoint.load(session, log(session), saved)


def test_a_checkpoint_of_another_format_is_refused(session, tmp_path):
    saved = checkpoint.save(session, log(session), tmp_path / "checkpoints", Position(1, 0))
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "format": "timm_arat.checkpoint/9"}))
    with pytest.raises(ValueError, match="manifest.json.*timm_arat.checkpoint/9"):
        checkpoint.load(session, log(session), saved)


def test_a_checkpoint_of_another_method_is_an_error(session, tmp_path):
    path = checkpoint.save(session, log(session), tmp_path / "checkpoints", Position(1, 0))
    forget()
    other = session_of(helpers_engine.tiny(tmp_path))
    with pytest.raises(ValueError, match="cannot be resumed"):
        checkpoint.load(other, log(other), path)


def test_a_full_disk_leaves_the_last_good_checkpoint(session, tmp_path, monkeypatch):
    good = checkpoint.save(session, log(session), tmp_path, Position(1, 0))
    before = damages(good)

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match="no space for a checkpoint"):
        checkpoint.save(session, log(session), tmp_path, Position(2, 0))
    assert checkpoint.newest(tmp_path) == good
    assert damages(good) == before
    assert not list(tmp_path.glob(".*.partial"))


def test_a_run_on_a_full_disk_says_how_to_go_on(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("timm_arat.engine.weights.save_file", full)
    with pytest.raises(OSError, match="--resume .* goes on"):
        train(tiny(tmp_path))


def test_a_full_disk_by_the_words_of_safetensors_is_a_full_disk(session, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match="no space for a checkpoint"):
        checkpoint.save(session, log(session), tmp_path, Position(2, 0))


def test_an_old_checkpoint_is_pruned_only_after_the_new_one_stands(session, tmp_path, monkeypatch):
    first = checkpoint.save(session, log(session), tmp_path, Position(1, 0))
    rename = Path.rename

    def watch(self, target):
        assert first.exists()
        found = rename(self, target)
        assert first.exists() and target.exists()
        return found

    monkeypatch.setattr(Path, "rename", watch)
    second = checkpoint.save(session, log(session), tmp_path, Position(2, 5))
    assert not first.exists()
    assert checkpoint.newest(tmp_path) == second
    assert checkpoint.load(session, log(session), second) == Position(2, 5)
