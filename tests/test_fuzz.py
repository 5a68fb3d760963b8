"""Files and words of others, made at random: an answer, or a ValueError that names them, and nothing else.

500 cases each, the same every time. `FUZZ_CASES=10000 uv run pytest -n 0 tests/test_fuzz.py` tries more and other ones.
"""

import io
import json
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from timm_arat import Robustness
from timm_arat.config import read, recipes
from timm_arat.data.decode import decode
from timm_arat.engine.config import TrainConfig
from timm_arat.engine.recipe import BELONGINGS, VARIANTS
from timm_arat.models import _weights
from timm_arat.models._json import read_config, read_json
from timm_arat.models._safetensors import shapes

CARD = _weights.CARDS / "resnet20_cifar_arat.cifar10_linf8"
CONFIG = json.loads((CARD / "config.json").read_text())
RESULTS = json.loads((Path(__file__).parents[1] / "docs/results/digits-arat.results.json").read_text())
RECIPE = yaml.safe_load(recipes()["digits"].read_text())
CASES = os.environ.get("FUZZ_CASES")
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
FIELDS = [(name,) for name in CONFIG] + [("pretrained_cfg", name) for name in CONFIG["pretrained_cfg"]]
FIELDS += [("model_args", name) for name in ("layers", "channels", "checkpoint_path", "num_classes", "drop_rate")]
fuzzed = settings(
    max_examples=int(CASES or 500),
    deadline=None,
    derandomize=CASES is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def read_or_refuse(read: Any, path: Path, content: bytes) -> Any:
    """What `read` gives for a file of this content; anything but a ValueError that names the file is a failure."""
    path.write_bytes(content)
    try:
        return read(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)[:40]
        return None


@fuzzed
@given(field=st.sampled_from(FIELDS), value=trees)
def test_a_config_with_a_field_of_anything(tmp_path_factory, field, value):
    config = json.loads(json.dumps(CONFIG))
    place = config
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    path = tmp_path_factory.getbasetemp() / "config.json"
    found = read_or_refuse(read_config, path, json.dumps(config).encode())
    assert found is None or found["architecture"].isidentifier()


@fuzzed
@given(start=st.integers(0, 30_000), length=st.integers(0, 30), put=st.binary(max_size=30), kind=st.sampled_from("cr"))
def test_torn_and_overwritten_json(tmp_path_factory, start, length, put, kind):
    name, read = {"c": ("config.json", read_config), "r": ("results.json", read_json)}[kind]
    whole = (CARD / name).read_bytes()
    start %= len(whole)
    content = whole[:start] + put + (whole[start + length :] if length else b"")
    read_or_refuse(read, tmp_path_factory.getbasetemp() / name, content)


@fuzzed
@given(
    header=trees | st.dictionaries(st.text(max_size=5), trees),
    extra=st.binary(max_size=40),
    size=st.integers(0, 2**64 - 1),
)
def test_safetensors_headers(tmp_path_factory, header, extra, size):
    text = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "model.safetensors"
    read_or_refuse(shapes, path, struct.pack("<Q", len(text)) + text + extra)
    assert read_or_refuse(shapes, path, struct.pack("<Q", size) + text + extra) is None or size == len(text)


def places(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a tree of objects and lists."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way for key, value in pairs for way in ((*above, key), *places(value, (*above, key)))]


def changed(tree: Any, way: tuple[Any, ...], value: Any) -> Any:
    """A copy of `tree` with `value` at the end of `way`."""
    copy = json.loads(json.dumps(tree))
    place = copy
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = value
    return copy


@fuzzed
@given(way=st.sampled_from(places(RESULTS)), value=trees)
def test_results_with_a_field_of_anything(tmp_path_factory, way, value):
    path = tmp_path_factory.getbasetemp() / "results.json"
    found = read_or_refuse(Robustness.load, path, json.dumps(changed(RESULTS, way, value)).encode())
    assert found is None or isinstance(found.to_json(), dict)


def train_config(*words: str) -> TrainConfig:
    return read(
        TrainConfig, list(words), variants=VARIANTS, belongings=BELONGINGS, default="digits", prog="x", description=""
    )


@fuzzed
@given(way=st.sampled_from(places(RECIPE)), value=trees)
def test_recipes_with_a_setting_of_anything(tmp_path_factory, way, value):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(RECIPE, way, value)))
    try:
        train_config("--config", str(path))
    except ValueError as error:
        assert str(error) and "Traceback" not in str(error)


@fuzzed
@given(content=st.text(max_size=200) | st.text("{}[]:,-&*!|>'\"%@# \nab01", max_size=200))
def test_recipes_of_any_text(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    try:
        train_config("--config", str(path))
    except ValueError as error:
        assert "recipe.yaml" in str(error) or not content.strip()


KEYS = [
    "epochs",
    "data.name",
    "data.transform",
    "model.kwargs.a",
    "attack.eps",
    "method.name",
    "optimizer.kwargs",
    "x.y",
]


@fuzzed
@given(key=st.sampled_from(KEYS) | st.text(max_size=12), value=st.text(max_size=12) | trees.map(str))
def test_words_of_the_command_line(key, value):
    try:
        train_config(f"--{key}", value)
    except ValueError as error:
        assert str(error)
    except SystemExit:
        assert key in ("h", "help") or value in ("-h", "--help")


def pictures() -> dict[str, bytes]:
    """A small image in each of some formats."""
    found = {}
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(12, 8, 3)).save(file, kind)
        found[kind] = file.getvalue()
    return found


PICTURES = pictures()


@fuzzed
@given(
    kind=st.sampled_from(sorted(PICTURES)),
    start=st.integers(0, 2000),
    length=st.integers(0, 40),
    put=st.binary(max_size=8),
)
def test_torn_and_overwritten_images(kind, start, length, put):
    whole = PICTURES[kind]
    start %= len(whole)
    content = whole[:start] + put + (whole[start + length :] if length else b"")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of a damaged TIFF
            assert decode(io.BytesIO(content), "RGB", "a.png").mode == "RGB"
    except ValueError as error:
        assert str(error).startswith("a.png ")
