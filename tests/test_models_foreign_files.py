"""Files of others out of bounds: a ValueError that names the file and the field. test_fuzz.py tries at random."""

import json

import pytest

from timm_arat.models import _weights
from timm_arat.models._json import MAX_DEPTH, read_config, read_json

CARD = _weights.CARDS / "resnet20_cifar_arat.cifar10_linf8"
CONFIG = json.loads((CARD / "config.json").read_text())


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
