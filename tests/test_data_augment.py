"""Augmentation by timm's options: what is drawn, in which pixels, and that no option is without effect."""

import inspect
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup, create_transform

from timm_arat.data import DataConfig, check_images, load, tensors, why_no_grid
from timm_arat.data.augment import augmentation
from timm_arat.data.options import _NOT_MIXUP, _NOT_TRANSFORM, MIXUP, TRANSFORM
from timm_arat.engine.batches import SeededBatches

MEAN, STD = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)


def seed(number):
    torch.manual_seed(number), np.random.seed(number), random.seed(number)


def picture(side=16):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog", "fox"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(4):
                picture().rotate(90 * index).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def on(folder, **fields):
    return DataConfig(name="folder", root=str(folder), batch_size=4, **fields)


def test_every_option_of_timm_is_offered_or_decided_by_us():
    for known, ours, others in (
        (inspect.signature(create_transform).parameters, TRANSFORM, _NOT_TRANSFORM),
        (inspect.signature(Mixup).parameters, MIXUP, _NOT_MIXUP),
    ):
        assert set(ours) <= set(known) <= set(ours) | set(others)
        assert not set(ours) & set(others)


@pytest.mark.parametrize("crop", ["none", "pad4", "rrc"])
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(
    "transform",
    [
        dict(auto_augment="rand-m9-mstd0.5", re_prob=1.0, re_mode="pixel"),
        dict(auto_augment="augmix-m5-w4-d2"),
        dict(auto_augment="original", vflip=0.5),
        dict(color_jitter=0.4, color_jitter_prob=0.9, grayscale_prob=0.5, gaussian_blur_prob=0.5),
        dict(color_jitter=[0.4, 0.4, 0.4, 0.1], re_prob=0.9, re_mode="rand", re_count=3),
    ],
    ids=str,
)
def test_images_keep_size_type_and_range(folder, transform, crop, in_chans):
    data = load(on(folder, transform=transform, crop=crop, hflip=0.5, in_chans=in_chans), input_size=(in_chans, 16, 16))
    seed(0)
    first = torch.stack([data.train[0][0] for _ in range(20)])
    assert first.shape == (20, in_chans, 16, 16) and first.dtype == torch.float32
    check_images(first)
    assert len(first.flatten(1).unique(dim=0)) > 1
    seed(0)
    assert torch.equal(first, torch.stack([data.train[0][0] for _ in range(20)]))
    for plain in (data.test, data.train.plain()):
        assert torch.equal(plain[1][0], plain[1][0])
    assert torch.equal(tensors(data.test)[0], tensors(data.train)[0])  # neither is augmented; the files are the same


def test_colours_are_timm_s_own_transform():
    for options in (dict(auto_augment="rand-m9-mstd0.5"), dict(color_jitter=0.4, grayscale_prob=0.3)):
        ours = augmentation(DataConfig(transform=options), (16, 16))
        everything = {"color_jitter": None, "interpolation": "bicubic", **options}
        _, colour, _ = create_transform(
            (3, 16, 16), is_training=True, separate=True, normalize=False, mean=IMAGENET_DEFAULT_MEAN, **everything
        )
        for number in range(10):
            seed(number)
            mine = ours(as_tensor(picture()))
            seed(number)
            assert torch.equal(mine, as_tensor(colour(picture())).float() / 255)


def test_a_random_resized_crop_with_options_is_timm_s_own_transform():
    options = dict(scale=[0.5, 0.6], ratio=[1.0, 1.0], color_jitter=0.4, vflip=0.5, interpolation="random")
    ours = augmentation(DataConfig(crop="rrc", hflip=0.5, transform=options), (16, 16))
    theirs = create_transform((3, 16, 16), is_training=True, normalize=False, **options)
    for number in range(10):
        seed(number)
        mine = ours(picture(40))
        seed(number)
        assert torch.equal(mine, theirs(picture(40)).float() / 255)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_is_timm_s_on_normalised_images_taken_back_into_pixels(mode):
    options = dict(re_prob=1.0, re_mode=mode, re_count=2)
    ours = augmentation(DataConfig(transform=options), (16, 16))
    theirs = create_transform(
        (3, 16, 16), is_training=True, color_jitter=None, hflip=0, scale=(1, 1), ratio=(1, 1), **options
    )
    x = as_tensor(picture())
    for number in range(20):
        seed(number)
        mine = ours(x)
        seed(number)
        final = theirs.transforms[-1](torch.full((3, 16, 16), torch.nan))  # what is drawn in normalised space
        is_kept = final.isnan()
        assert 0 < int(is_kept.sum()) < is_kept.numel()
        assert torch.equal(mine[is_kept], (x.float() / 255)[is_kept])
        back = (final * STD[:, None, None] + MEAN[:, None, None]).clamp(0, 1)
        assert torch.equal(mine[~is_kept], back[~is_kept])
        if mode == "const":
            assert torch.equal(mine[:, ~is_kept[0]], MEAN[:, None].expand(3, int((~is_kept[0]).sum())))


def test_float_images_are_rounded_to_bytes_for_colours_only():
    x = torch.rand(1, 16, 16)
    augment = augmentation(DataConfig(in_chans=1, transform=dict(vflip=1.0)), (16, 16))
    assert torch.equal(augment(x), x.flip(1))
    augment = augmentation(DataConfig(in_chans=1, transform=dict(color_jitter=0.0, grayscale_prob=1.0)), (16, 16))
    assert torch.equal(augment(x), (x * 255).round() / 255)


@pytest.mark.parametrize("cache", ["always", "never"])
def test_float_pixels_stay_in_0_1_under_random_resized_crops(cache):
    train = load(DataConfig(crop="rrc", cache=cache), input_size=(3, 16, 16)).train
    seed(0)
    check_images(torch.stack([train[index][0] for index in range(200)]))


@pytest.mark.parametrize(
    "fields, wanted",
    [
        (
            dict(transform=dict(autoaugment="rand")),
            "data.transform has no option 'autoaugment'; did you mean 'auto_augm",
        ),
        (dict(transform=dict(zzz=1)), "data.transform has no option 'zzz'; choose from auto_augment"),
        (dict(transform=dict(hflip=0.5)), "data.transform.hflip is decided by timm_arat itself; set data.hflip"),
        (dict(transform=dict(mean=0.5)), "data.transform.mean is decided by timm_arat itself, so it is no setting"),
        (dict(transform=dict(scale=[0.5, 1])), "scale is of random resized crops: set data.crop rrc"),
        (dict(transform=dict(re_mode="pixel")), "re_mode has no effect without re_prob"),
        (dict(transform=dict(color_jitter_prob=0.5)), "color_jitter_prob has no effect without color_jitter"),
        (dict(transform=dict(vflip=0.5, interpolation="bilinear")), "interpolation has no effect without"),
        (dict(transform=dict(auto_augment="rand-m9", color_jitter=0.4)), "leaves out color_jitter beside auto_augment"),
        (dict(transform=dict(re_prob=2)), "data.transform.re_prob=2 is not a number in"),
        (dict(transform=dict(vflip=True)), "data.transform.vflip=True is not a number in"),
        (dict(transform=dict(re_prob=0.5, re_count=0)), "re_count=0 is not a whole number of at least 1"),
        (dict(transform=dict(re_prob=0.5, re_count="many")), "re_count='many' is not a whole number"),
        (dict(crop="rrc", transform=dict(scale=[1, 0.5])), r"scale=\[1, 0.5\] is not a pair \[low, high\]"),
        (dict(mixup=dict(mixup_alfa=1)), "data.mixup has no option 'mixup_alfa'; did you mean 'mixup_alpha'"),
        (dict(mixup=dict(num_classes=10)), "num_classes is decided by timm_arat itself; set data.num_classes"),
        (dict(mixup=dict(label_smoothing=0.1)), "data.mixup mixes nothing: give mixup_alpha"),
        (dict(mixup=dict(mixup_alpha=-1)), "mixup_alpha=-1 is not a number of at least 0"),
        (dict(mixup=dict(mixup_alpha="a")), "mixup_alpha='a' is not a number of at least 0"),
        (dict(mixup=dict(cutmix_alpha=None)), "cutmix_alpha=None is not a number of at least 0"),
        (dict(mixup=dict(mixup_alpha=1, mode="half")), "mode='half' is not one of batch, pair, elem"),
        (dict(mixup=dict(mixup_alpha=1, switch_prob=0.5)), "switch_prob has no effect unless"),
        (dict(mixup=dict(cutmix_alpha=1, cutmix_minmax=[0.2, 0.8])), "leave out one of the two"),
        (dict(mixup=dict(mixup_alpha=1), batch_size=7), "data.batch_size=7 is odd"),
    ],
    ids=str,
)
def test_an_option_that_is_unknown_or_without_effect_is_refused_at_once(fields, wanted):
    with pytest.raises(ValueError, match=wanted):
        DataConfig(**fields)


@pytest.mark.parametrize(
    "fields, wanted",
    [
        (
            dict(transform=dict(auto_augment="nonsense")),
            "data.transform: timm does not take {'auto_augment': 'nonsense'}",
        ),
        (dict(transform=dict(re_prob=0.5, re_mode="stripes")), "timm does not take .*stripes"),
        (dict(crop="rrc", transform=dict(train_crop_mode="rck")), "timm does not take .*rck"),
        (dict(transform=dict(color_jitter="strong")), "timm does not take .*strong"),
        (dict(transform=dict(gaussian_blur_prob=0.1)), "timm's blur wants at least 12 pixels a side"),
    ],
    ids=str,
)
def test_a_value_that_timm_refuses_is_an_error_before_data_are_read(fields, wanted):
    with pytest.raises(ValueError, match=wanted):
        load(DataConfig(name="folder", root="/nowhere", **fields), input_size=(3, 8, 8))


MIXES = [
    dict(mixup_alpha=0.8),
    dict(cutmix_alpha=1.0),
    dict(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, mode="elem", label_smoothing=0.1),
    dict(cutmix_minmax=[0.2, 0.8], mode="pair", prob=0.9),
]


@pytest.mark.parametrize("mixup", MIXES, ids=str)
def test_mixed_batches_have_soft_labels_in_the_share_of_the_pixels(folder, mixup):
    batches = SeededBatches(load(on(folder, mixup=mixup), input_size=(3, 16, 16)).train, seed=0)
    batch = torch.utils.data.default_collate(batches.__getitems__([0, 1, 4, 8]))
    x, y = batch
    assert x.shape == (4, 3, 16, 16) and y.shape == (4, 3) and y.dtype == torch.float32
    check_images(x)
    assert torch.allclose(y.sum(1), torch.ones(4)) and (y >= 0).all()


def test_a_mixed_image_is_the_sum_that_its_labels_say(folder):
    data = load(on(folder, mixup=dict(mixup_alpha=1.0)), input_size=(3, 16, 16))
    plain, _ = tensors(data.train, [0, 4, 1, 8])  # cat, dog, cat, fox; the first goes with the last
    mixed = SeededBatches(data.train, seed=0).__getitems__([0, 4, 1, 8])
    share = float(mixed[0][1][0])
    assert 0 < share < 1 and torch.allclose(mixed[0][1], torch.tensor([share, 0, 1 - share]))
    assert torch.allclose(mixed[1][1], torch.tensor([1 - share, share, 0]))
    assert torch.allclose(mixed[0][0], share * plain[0] + (1 - share) * plain[3], atol=1e-6)
    assert torch.equal(tensors(data.train, [0, 4, 1, 8])[0], plain)  # what is cached is not written into


def test_smoothed_labels_hold_timm_s_share_of_all_classes(folder):
    mixup = dict(mixup_alpha=1.0, prob=0.0, label_smoothing=0.3)
    mixed = SeededBatches(load(on(folder, mixup=mixup), input_size=(3, 16, 16)).train, seed=0).__getitems__([0, 4])
    assert torch.allclose(mixed[1][1], torch.tensor([0.1, 0.8, 0.1]))


def test_an_odd_batch_cannot_be_mixed_and_unmixed_batches_keep_their_classes(folder):
    data = load(on(folder, mixup=dict(mixup_alpha=1.0)), input_size=(3, 16, 16))
    with pytest.raises(ValueError, match="mixes the images of a batch in pairs, and one has 3"):
        SeededBatches(data.train, seed=0).__getitems__([0, 1, 2])
    assert [y for _, y in SeededBatches(data.train, seed=0, mix=False).__getitems__([0, 4, 8])] == [0, 1, 2]
    assert data.train.plain().mix is None and data.test.mix is None


@pytest.mark.parametrize(
    "fields, wanted",
    [
        (dict(transform=dict(auto_augment="rand-m9")), r"data.transform \(auto_augment\) changes pixels at random"),
        (dict(transform=dict(re_prob=0.5, vflip=0.5)), r"data.transform \(re_prob\) changes pixels at random"),
        (dict(mixup=dict(mixup_alpha=1.0)), "data.mixup makes one image of two"),
        (dict(crop="rrc"), "data.crop=rrc resamples its pixels"),
    ],
    ids=str,
)
def test_pixels_that_cannot_be_followed_have_no_grid(folder, fields, wanted):
    config = on(folder, **fields)
    train = load(config, input_size=(3, 16, 16)).train
    with pytest.raises(ValueError, match=wanted):
        train.grid()
    with pytest.raises(ValueError, match=f"warm_start: {wanted}"):
        SeededBatches(train, seed=0, grids=True)
    assert why_no_grid(config.transform, config.mixup, config.crop)


def test_a_vertical_flip_is_followed(folder):
    train = load(on(folder, crop="pad4", hflip=0.5, transform=dict(vflip=0.5)), input_size=(3, 16, 16)).train
    batch = SeededBatches(train, seed=0, grids=True).__getitems__(list(range(12)))
    plain = torch.nn.functional.pad(tensors(train)[0].flatten(2), (1, 0))
    for x, _, index, grid in batch:
        assert grid.dtype == torch.int32
        assert torch.equal(x, plain[index][:, grid.flatten().long()].view_as(x))
