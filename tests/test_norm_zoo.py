"""One architecture of each family that has BatchNorm, the smallest; `-m zoo` checks every one (tests/zoo.py)."""

import json
from pathlib import Path
from typing import Any

import pytest
import zoo

# The smallest architecture of each of the 53 families with BatchNorm in timm 1.0.31.
SAMPLE = (
    "test_byobnet",
    "convmixer_768_32",
    "cpubone_nano",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "test_efficientnet",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "fasternet_t0",
    "fastvit_t8",
    "ghostnet_050",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "test_coatnet",
    "mobilenetv3_small_050",
    "nasnetalarge",
    "nextvit_small",
    "pnasnet5large",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "test_resnet",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "shvit_s1",
    "starnet_s050",
    "swiftformer_xs",
    "tiny_vit_5m_224",
    "tresnet_m",
    "vgg11_bn",
    "visformer_tiny",
    "vit_small_resnet50d_s16_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_split_norm_on_one_architecture_of_each_family(name: str) -> None:
    record = zoo.check_architecture(zoo.survey(name))
    assert record["outcome"] == "converted", record["reason"]
    assert record["folded"] > 0 or name == "convmixer_768_32"  # whose norms stand behind activations


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("test_vit", "affine-split"),
        ("test_convnext", "affine-split"),
        ("nf_regnet_b0", "refused"),
        ("csatv2", "refused"),
    ],
)
def test_architectures_without_batch_norm(name: str, outcome: str) -> None:
    record = zoo.check_architecture(zoo.survey(name))
    assert record["outcome"] == outcome, record.get("reason")


@pytest.fixture
def surveyed(tmp_path: Path) -> Path:
    """An output whose survey is a part of the list: the whole list takes minutes."""
    rows = [zoo.asdict(zoo.survey(name)) for name in ("test_resnet", "test_vit", "nf_regnet_b0")]
    (tmp_path / "zoo.survey.json").write_text(json.dumps(rows))
    return tmp_path / "zoo.jsonl"


def test_the_command_resumes_and_ends_in_one_line(surveyed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["--output", str(surveyed)]) == 0
    line = "converted 1 of 1, affine-split 1, refused 1: 1 no norm with parameters that can be split"
    assert capsys.readouterr().out.splitlines()[-1] == line
    records: list[dict[str, Any]] = [json.loads(row) for row in surveyed.read_text().splitlines()]
    assert [record["name"] for record in records] == ["test_resnet", "test_vit", "nf_regnet_b0"]

    broken = {**records[0], "outcome": "failed", "reason": "made up"}
    surveyed.write_text("".join(json.dumps(row) + "\n" for row in [broken, *records[1:]]))
    assert zoo.main(["--output", str(surveyed)]) == 0
    again = capsys.readouterr().out
    assert "3 architectures, 2 of them done" in again and again.splitlines()[-1] == line


@pytest.mark.zoo
def test_every_architecture_of_timm() -> None:
    assert zoo.main(["--output", "zoo.jsonl"]) == 0
