"""Files of others, torn, mutated or hostile: a ValueError that names the file and the field, and nothing else."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timm_arat.models import _weights
from timm_arat.models._json import MAX_DEPTH, read_config, read_json
from timm_arat.models._safetensors import shapes

CARD = _weights.CARDS / "resnet20_cifar_arat.cifar10_linf8"
CONFIG = json.loads((CARD / "config.json").read_text())
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
FIELDS = [(name,) for name in CONFIG] + [("pretrained_cfg", name) for name in CONFIG["pretrained_cfg"]]
FIELDS += [("model_args", name) for name in ("layers", "channels", "checkpoint_path", "num_classes", "drop_rate")]
fuzzed = settings(
    max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
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


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_args": {"layers": [10_000_000]}}, "model_args.layers is 10000000, wanted at most 1000"),
        ({"model_args": {"stem_width": 10**12}}, "model_args.stem_width is 1000000000000, wanted at most 65536"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "model_args.checkpoint_path is no argument of a model"),
        ({"model_args": {"layers": [1] * 5000}}, "model_args.layers has 5000 entries"),
        ({"num_classes": 10**9}, "num_classes is 1000000000"),
        ({"architecture": "../../x"}, "architecture is '../../x'"),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}}, "pretrained_cfg.input_size is"),
        ({"pretrained_cfg": {"std": [0.0]}}, "pretrained_cfg.std is"),
        ({"pretrained_cfg": {"what": 1}}, "pretrained_cfg.what is a field that this timm does not know"),
    ],
)
def test_the_field_is_named(change, field, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ValueError) as error:
        read_config(tmp_path / "config.json")
    assert field in str(error.value) and str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"a": NaN}', b'{"a": 1e999}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 17 + b"1" + b"}" * 17],
    ids=["empty", "list", "nan", "infinite", "bytes", "brackets", "deep"],
)
def test_no_json_object(content, tmp_path):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match="results.json cannot be used"):
        read_json(tmp_path / "results.json")


def test_limits_of_length_and_depth(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(ValueError, match="longer than 50 bytes"):
        read_json(tmp_path / "x.json", 50)
    deep = MAX_DEPTH - 1
    (tmp_path / "x.json").write_text('{"a":' * deep + "1" + "}" * deep)
    assert read_json(tmp_path / "x.json")
