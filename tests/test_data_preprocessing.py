"""What an exported model says of its images makes timm prepare them as they were measured, pixel for pixel."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from timm_arat.data import DataConfig, load, tensors
from timm_arat.data.fit import Fit


def pictures(folder, *sizes):
    rng = np.random.default_rng(0)
    (folder / "test" / "cat").mkdir(parents=True)
    for index, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "test" / "cat" / f"{index}.png")
    return DataConfig(name="folder", root=str(folder))


def by_timm(preprocessing, size, folder):
    """The test images of `folder` by timm's transform for a model whose config says `preprocessing`."""
    cfg = {
        "input_size": (3, *size),
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "crop_pct": 0.95,
        "interpolation": "bilinear",
    }
    cfg |= {"test_input_size": (3, 288, 288), "test_crop_pct": 1.0, "crop_mode": "squash"}  # a pretrained source's
    model = SimpleNamespace(pretrained_cfg=json.loads(json.dumps({**cfg, **preprocessing})))
    for use_test_size in (False, True):
        transform = create_transform(**resolve_model_data_config(model, use_test_size=use_test_size))
        yield torch.stack([transform(Image.open(file)) for file in sorted((folder / "test" / "cat").iterdir())])


@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (24, 24), (32, 24)])
def test_timm_prepares_images_of_several_sizes_as_the_evaluation_did(tmp_path, size, crop_pct, interpolation):
    config = pictures(tmp_path, (48, 40), (32, 32), (100, 60))
    config = DataConfig(name="folder", root=config.root, crop_pct=crop_pct, interpolation=interpolation)
    data = load(config, input_size=(3, *size), splits=["test"])
    assert data.preprocessing["crop_pct"] == crop_pct and data.preprocessing["interpolation"] == interpolation
    for theirs in by_timm(data.preprocessing, size, tmp_path):
        assert torch.equal(tensors(data.test)[0], theirs)


def test_a_set_of_the_right_size_stays_as_it_is_and_says_so(tmp_path):
    data = load(pictures(tmp_path, (32, 32), (32, 32)), input_size=(3, 32, 32), splits=["test"])
    assert data.preprocessing["crop_pct"] == 1.0
    files = sorted((tmp_path / "test" / "cat").iterdir())
    true = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).permute(0, 3, 1, 2) / 255
    for x in (tensors(data.test)[0], *by_timm(data.preprocessing, (32, 32), tmp_path)):
        assert torch.equal(x, true)
    assert load(DataConfig(), input_size=(3, 8, 8)).preprocessing["crop_pct"] == 1.0
    assert load(DataConfig(), input_size=(3, 16, 16)).preprocessing["crop_pct"] == 0.875


def test_the_splits_of_a_data_set_are_prepared_alike_by_what_is_tested(tmp_path):
    pictures(tmp_path, (32, 32), (40, 32))
    for index in range(2):
        (tmp_path / "train" / "cat").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 90).save(tmp_path / "train" / "cat" / f"{index}.png")
    data = load(DataConfig(name="folder", root=str(tmp_path)), input_size=(3, 32, 32))
    assert data.preprocessing["crop_pct"] == 0.875
    wanted = Fit((32, 32), 0.875, "bicubic")(Image.open(tmp_path / "train" / "cat" / "0.png").convert("RGB"))
    assert torch.equal(tensors(data.train)[0][0], wanted / 255)
