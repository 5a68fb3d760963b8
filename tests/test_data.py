"""Data: pixels in [0, 1] and never touched without need, splits that do not meet, and mistakes in plain words."""

import pickle
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from timm_arat.config import cli
from timm_arat.data import DataConfig, check_images, check_labels, load, subset, tensors

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
DIGITS = DataConfig(in_chans=1, val_size=100)
needs_cifar = pytest.mark.skipif(not CIFAR.is_dir(), reason=f"the development copy of CIFAR-10 is not at {CIFAR}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of two classes, 12 images each, lossless, 16x16."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 6, 16, 16, 3), dtype=np.uint8)
    for split, of_split in zip(("train", "val"), pixels, strict=True):
        for name, of_class in zip(("cat", "dog"), of_split, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for index, image in enumerate(of_class):
                Image.fromarray(image).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def on(folder: Path, **fields) -> DataConfig:
    return DataConfig(name="folder", root=str(folder), test_split="val", **fields)


def message(config: DataConfig, size=(3, 16, 16), **kwargs) -> str:
    with pytest.raises(ValueError) as caught:
        load(config, input_size=size, **kwargs)
    return str(caught.value)


def test_subset_is_exact_proportional_sorted_and_its_seed_alone_decides():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)[torch.randperm(100)]
    for n in (0, 1, 7, 10, 50, 100):
        torch.manual_seed(n)
        before = torch.get_rng_state()
        chosen = subset(labels, n, seed=3)
        assert torch.equal(before, torch.get_rng_state())
        assert len(chosen) == len(set(chosen.tolist())) == n
        assert torch.equal(chosen, chosen.sort().values) and torch.equal(chosen, subset(labels, n, seed=3))
        counts = labels[chosen].bincount(minlength=3)
        assert ((counts - torch.tensor([70, 20, 10]) * n / 100).abs() < 1).all()
    assert not torch.equal(subset(labels, 50, seed=3), subset(labels, 50, seed=4))
    with pytest.raises(ValueError, match="cannot choose 101 of 100"):
        subset(labels, 101, seed=0)


def test_subset_does_not_favour_the_first_classes():
    labels = torch.arange(10).repeat(10)
    of_first_half = sum(int((labels[subset(labels, 5, seed)] < 5).sum()) for seed in range(40))
    assert 70 < of_first_half < 130  # 100 expected of 200 draws


def test_digits_are_split_by_class_and_the_splits_do_not_meet():
    data = load(DIGITS, input_size=(1, 8, 8))
    assert [len(part) for part in (data.train, data.val, data.test)] == [1337, 100, 360]
    assert data.num_classes == 10 and data.class_names == tuple("0123456789")
    rows = torch.cat([tensors(part)[0].flatten(1) for part in (data.train, data.val, data.test)])
    assert len(rows.unique(dim=0)) == 1797
    assert set((rows.unique() * 16).tolist()) == set(range(17))
    for part in (data.train, data.val, data.test):
        share = part.labels.bincount(minlength=10) / len(part)
        assert (share - 0.1).abs().max() < 0.02


def test_the_held_out_split_is_the_same_whatever_else_is_asked_for():
    together = load(DIGITS, input_size=(1, 8, 8))
    alone = load(DIGITS, input_size=(1, 8, 8), splits=["val"])
    assert torch.equal(tensors(together.val)[0], tensors(alone.val)[0])
    assert alone.train is None and alone.test is None
    other = load(replace(DIGITS, val_seed=1), input_size=(1, 8, 8), splits=["val"])
    assert not torch.equal(other.val.indices, alone.val.indices)
    assert load(replace(DIGITS, val_size=0), input_size=(1, 8, 8)).val is None


def test_grey_digits_fill_three_channels_and_other_sizes():
    x, y = tensors(load(DataConfig(), input_size=(3, 16, 16), splits=["test"]).test)
    assert x.shape == (360, 3, 16, 16) and y.shape == (360,)
    assert torch.equal(x[:, 0], x[:, 2])
    check_images(x)


@pytest.mark.parametrize("cache", ["auto", "always", "never"])
def test_images_of_the_right_size_stay_as_they_are_bit_for_bit(folder, cache):
    data = load(on(folder, cache=cache, crop="pad4", hflip=0.5), input_size=(3, 16, 16))
    files = sorted((folder / "val").rglob("*.png"))
    true = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]).float() / 255
    x, y = tensors(data.test)
    assert torch.equal(x, true)
    assert y.tolist() == [0] * 6 + [1] * 6
    assert data.class_names == ("cat", "dog")
    assert (data.test.pixels is not None) == (cache != "never")


@pytest.mark.parametrize("augment", [True, False])
def test_what_is_trained_on_does_not_depend_on_the_memory_that_was_free(folder, augment):
    found = []
    for cache in ("always", "never"):
        train = load(on(folder, crop="rrc", hflip=0.5, cache=cache), input_size=(3, 12, 12)).train
        torch.manual_seed(0)
        random.seed(0)
        found.append(torch.stack([x for x, _ in (train if augment else train.plain())]))
        assert (train.pixels is not None) == (cache == "always")
    assert torch.equal(*found)


@pytest.mark.parametrize("cache", ["always", "never"])
@pytest.mark.parametrize("crop", ["none", "pad4", "rrc"])
@pytest.mark.parametrize("size", [16, 12, 24])
def test_augmented_images_have_the_models_size_and_plain_ones_too(folder, crop, cache, size):
    train = load(on(folder, crop=crop, hflip=0.5, cache=cache), input_size=(3, size, size)).train
    for x in (torch.stack([x for x, _ in train]), tensors(train)[0]):
        assert x.shape == (12, 3, size, size) and x.dtype == torch.float32
        check_images(x)


def test_cached_and_decoded_images_are_augmented_alike(folder):
    drawn = []
    for cache in ("always", "never"):
        train = load(on(folder, crop="pad4", hflip=0.5, cache=cache), input_size=(3, 16, 16)).train
        torch.manual_seed(0)
        drawn.append(torch.stack([x for x, _ in train]))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_repeats_with_the_generator_and_differs_over_epochs(folder, workers):
    train = load(on(folder, crop="pad4", hflip=0.5), input_size=(3, 16, 16)).train

    def epoch():
        return torch.cat([x for x, _ in DataLoader(train, batch_size=4, num_workers=workers)])

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = epoch(), epoch()
    torch.set_rng_state(state)
    assert torch.equal(first, epoch())
    assert not torch.equal(first, second)


def test_pad4_is_a_shift_and_hflip_a_mirror(folder):
    train = load(on(folder, crop="pad4", hflip=0.5), input_size=(3, 16, 16)).train
    plain = torch.nn.functional.pad(tensors(train)[0], (4, 4, 4, 4))
    for index in range(len(train)):
        x = train[index][0]
        shifts = plain[index].unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert any(torch.equal(each, shift) for each in (x, x.flip(-1)) for shift in shifts)


def test_without_hflip_nothing_is_mirrored():
    train = load(DIGITS, input_size=(1, 8, 8)).train
    assert train.augment is None
    assert torch.equal(torch.stack([train[i][0] for i in range(9)]), tensors(train, range(9))[0])


@pytest.mark.parametrize("cache", ["always", "never"])
def test_everything_can_be_sent_to_a_spawned_worker(folder, cache):
    for config in (on(folder, crop="rrc", hflip=0.5, cache=cache), on(folder, crop="pad4", cache=cache)):
        train = load(config, input_size=(3, 16, 16)).train
        assert torch.equal(tensors(pickle.loads(pickle.dumps(train)))[0], tensors(train)[0])


def test_images_of_several_sizes_are_left_on_the_disk_unless_told(folder):
    Image.new("RGB", (20, 30)).save(folder / "train" / "cat" / "9.png")
    assert load(on(folder, crop="rrc"), input_size=(3, 16, 16)).train.pixels is None
    assert load(on(folder, crop="pad4"), input_size=(3, 16, 16)).train.pixels is not None  # one size once they fit
    assert "several sizes" in message(on(folder, crop="rrc", cache="always"))


def test_a_tar_can_stand_for_a_folder(folder, tmp_path_factory):
    import tarfile

    tars = tmp_path_factory.mktemp("tars")
    for split in ("train", "val"):
        with tarfile.open(tars / f"{split}.tar", "w") as tar:
            tar.add(folder / split, arcname=".")
    x, y = tensors(load(on(tars), input_size=(3, 16, 16)).test)
    x_folder, y_folder = tensors(load(on(folder), input_size=(3, 16, 16)).test)
    assert torch.equal(y, y_folder)
    assert torch.equal(x, x_folder)


def test_torchvision_sets_are_read(folder, tmp_path):
    data = load(replace(on(folder), name="torch/folder"), input_size=(3, 16, 16))
    assert torch.equal(tensors(data.test)[0], tensors(load(on(folder), input_size=(3, 16, 16)).test)[0])
    config = DataConfig(name="torch/cifar10", root=str(tmp_path))
    assert "set data.download, or give the right data.root" in message(config)
    assert "has no split 'tset'; it has train and test" in message(replace(config, test_split="tset"), splits=["test"])
    assert "give data.root" in message(replace(config, root=None))


@pytest.mark.parametrize(
    "fields, wanted",
    [
        (dict(name="digts"), "unknown data set 'digts'; did you mean 'digits'?"),
        (dict(name="cifar10"), "did you mean 'torch/cifar10'?"),
        (dict(name="torch/cifar11"), "did you mean 'torch/cifar10'?"),
        (dict(name="hfsd/user/set"), "unknown data set 'hfsd/user/set'"),
        (dict(name="hfds/./nowhere"), "there is no folder './nowhere'"),
        (dict(name="folder", root="/nowhere"), "data.root='/nowhere' is no folder"),
        (dict(name="folder", root="nowhere"), f"data.root='nowhere' (seen from {Path.cwd()}) is no folder"),
        (dict(name="folder"), "data.root=None is no folder"),
        (dict(test_split="tset"), "data set 'digits' has no split 'tset'; it has train and test"),
        (dict(val_size=1437), "val_size=1437 leaves nothing of the 1437 images"),
        (dict(num_classes=7), "split 'train': label 9 is not in 0 ... 6; give data.num_classes of at least 10"),
        (dict(in_chans=1), "the model takes 3 channels, data.in_chans=1"),
    ],
    ids=str,
)
def test_a_mistake_is_answered_with_the_way_out(fields, wanted):
    assert wanted in message(DataConfig(**fields))


def test_folders_without_the_split_or_without_images_or_with_other_classes_are_refused(folder):
    assert "has no split 'trian'; it holds train, val" in message(replace(on(folder), train_split="trian"))
    (folder / "val" / "dog").rename(folder / "val" / "fox")
    assert "split 'val' has images of the classes 'fox', which 'train' has not" in message(on(folder))
    (folder / "test" / "cat").mkdir(parents=True)
    assert "Found 0 images" in message(replace(on(folder), test_split="test"), splits=["test"])


@pytest.mark.parametrize("cache", ["always", "never"])
def test_an_unreadable_image_is_named_and_not_replaced(folder, cache):
    bad = folder / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"image 9 \(dog/3.png\) cannot be read"):
        train = load(on(folder, cache=cache), input_size=(3, 16, 16)).train
        [train[index] for index in range(len(train))]


def test_a_workers_error_ends_in_one_line_too(folder, capsys, monkeypatch):
    monkeypatch.delenv("TIMM_ARAT_DEBUG", raising=False)
    train = load(on(folder, cache="never"), input_size=(3, 16, 16)).train
    (folder / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        cli(lambda: next(iter(DataLoader(train, num_workers=1))))()
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: image 0 (cat/0.png) cannot be read: ")


def test_pixels_outside_0_1_and_labels_out_of_range_are_refused():
    good = torch.rand(2, 3, 4, 4)
    check_images(good)
    for bad in (good * 255, good - 0.5, good * float("nan"), good.clone().fill_(-2e-6), good.clone().fill_(1 + 2e-6)):
        with pytest.raises(ValueError, match=r"wanted pixels in \[0, 1\]"):
            check_images(bad)
        with pytest.raises(ValueError, match="divide bytes by 255"):
            tensors([(image, 0) for image in bad])
    check_labels(torch.tensor([0, 9]), 10, "here")
    with pytest.raises(ValueError, match=r"here: label 10 is not in 0 ... 9; give data.num_classes of at least 11"):
        check_labels(torch.tensor([0, 10]), 10, "here")
    with pytest.raises(ValueError, match="the split has no labels"):
        check_labels(torch.tensor([-1, -1]), 10, "here")
    with pytest.raises(ValueError, match="no images"):
        tensors([(good[0], 0)], [])


@pytest.mark.parametrize(
    "fields, wanted",
    [
        (dict(batch_size=0), "batch_size=0"),
        (dict(image_size=0), "image_size=0 is not at least 1"),
        (dict(image_size=-8), "image_size=-8"),
        (dict(num_classes=0), "num_classes=0"),
        (dict(num_classes=-3), "num_classes=-3"),
        (dict(workers=-1), "workers=-1"),
        (dict(crop="pad8"), "crop='pad8' is not one of pad4, rrc, none"),
        (dict(val_split="val", val_size=9), "val_split='val' and val_size=9 are two sources"),
        (dict(hflip=2.0), "hflip=2.0"),
        (dict(crop_pct=0.0), "crop_pct=0.0"),
        (dict(val_size=-1), "val_size=-1"),
        (dict(in_chans=4), "in_chans=4"),
        (dict(test_split="train"), "test_split='train' is the training split too"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_refused_at_once(fields, wanted):
    with pytest.raises(ValueError, match=wanted):
        DataConfig(**fields)


@pytest.mark.parametrize(
    "module, config, wanted",
    [
        ("sklearn.datasets", DataConfig(), r"pip install timm_arat\[digits\]"),
        ("datasets", DataConfig(name="hfds/user/set"), r"pip install timm_arat\[data\]"),
    ],
)
def test_a_missing_library_is_answered_with_what_to_install(module, config, wanted, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    with pytest.raises(ImportError, match=wanted):
        load(config, input_size=(3, 8, 8))


def test_what_float_arithmetic_loses_is_clamped_and_the_rest_untouched():
    x = torch.tensor([-2.98e-8, 0.25, 1.0000001]).expand(2, 1, 1, 3)
    assert check_images(x).tolist() == [[[[0.0, 0.25, 1.0]]]] * 2
    assert tensors([(image, 0) for image in x])[0].tolist() == [[[[0.0, 0.25, 1.0]]]] * 2
    assert x[0, 0, 0, 0] < 0  # the caller's stay as they came
    inside = torch.rand(2, 1, 1, 3)
    assert check_images(inside) is inside


def test_labels_of_any_integer_type_are_chosen_from_and_read():
    labels = torch.arange(3).repeat(4)
    for dtype in (torch.uint8, torch.int8, torch.int32):
        assert torch.equal(subset(labels.to(dtype), 6, seed=0), subset(labels, 6, seed=0))
        y = tensors([(torch.zeros(1, 2, 2), label) for label in labels.to(dtype)])[1]
        assert y.dtype == torch.int64 and torch.equal(y, labels)


def test_the_validation_split_of_a_folder_is_read_and_no_training_image_is_held_out(folder):
    (folder / "val").rename(folder / "validation")
    (folder / "test" / "dog").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(folder / "test" / "dog" / "0.png")
    config = DataConfig(name="folder", root=str(folder), val_split="val")
    data = load(config, input_size=(3, 16, 16))
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 12, 1]
    files = sorted((folder / "validation").rglob("*.png"))
    true = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]).float() / 255
    assert torch.equal(tensors(data.val)[0], true) and data.val.split == "val" and data.val.augment is None
    assert load(config, input_size=(3, 16, 16), splits=["val"]).val.labels.tolist() == [0] * 6 + [1] * 6
    same = replace(config, test_split="validation")
    assert "data.val_split='val' is data.test_split='validation' too" in message(same)
    halves = DataConfig(name="torch/cifar10", root=str(folder), val_split="val")
    assert "data.val_split='val' is data.test_split='test' too" in message(halves)
    (folder / "validation" / "dog").rename(folder / "validation" / "fox")
    assert "split 'val' has images of the classes 'fox', which 'train' has not" in message(config)


def test_hugging_face_folders_are_read_with_their_class_names(tmp_path, monkeypatch, folder):
    datasets = pytest.importorskip("datasets", reason="needs timm_arat[data]")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split in ("train", "val"):
        files = sorted((folder / split).rglob("*.png"))
        table = {"img": [str(file) for file in files], "label": [["cat", "dog"].index(f.parent.name) for f in files]}
        hub = tmp_path / "hub"
        hub.mkdir(exist_ok=True)
        name = {"train": "train", "val": "validation"}[split]
        datasets.Dataset.from_dict(table, features=features).to_parquet(hub / f"{name}-00000-of-00001.parquet")
    config = DataConfig(name=f"hfds/{hub}", root=str(tmp_path / "cache"), test_split="validation", input_key="img")
    data = load(config, input_size=(3, 16, 16))
    assert data.class_names == ("cat", "dog")
    assert torch.equal(tensors(data.test)[0], tensors(load(on(folder), input_size=(3, 16, 16)).test)[0])
    assert "split 'test', cannot be read: Unknown split \"test\"" in message(replace(config, test_split="test"))
    assert "has no column 'image': give data.input_key, one of img, label" in message(replace(config, input_key=None))
    assert "has no column 'y': give data.target_key, one of" in message(replace(config, target_key="y"))
    # As a published checkpoint calls its data, whose publisher had it in a folder.
    assert "give its path: data.name=hfds/PATH/pets" in message(replace(config, name="hfds/pets"))
    # Without a network `datasets` answers for that name with whatever folder of it was last read.
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "is of a folder elsewhere: give its path, data.name=hfds/PATH/hub" in message(
        replace(config, name="hfds/hub")
    )


@needs_cifar
def test_the_shared_cifar10_is_read_untouched(tmp_path):
    pytest.importorskip("datasets", reason="needs timm_arat[data]")
    config = DataConfig(name=f"hfds/{CIFAR}", root=str(tmp_path), crop="pad4", hflip=0.5, cache="never", val_size=1000)
    data = load(config, input_size=(3, 32, 32))
    assert [len(part) for part in (data.train, data.val, data.test)] == [49_000, 1000, 10_000]
    assert data.class_names[:2] == ("airplane", "automobile")
    assert data.val.labels.bincount().tolist() == [100] * 10
    image = data.test.source.images[7]
    assert torch.equal(tensors(data.test, [7])[0][0], torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)


def test_what_does_not_fit_into_memory_is_refused_or_left_on_the_disk(folder, monkeypatch):
    memory = type("Memory", (), {"available": 3000})  # the test split's 12 images take 9,216 bytes
    monkeypatch.setattr("timm_arat.data.images.psutil.virtual_memory", lambda: memory)
    with pytest.raises(ValueError, match=r"images of 3x16x16 take .* set data.cache never"):
        load(on(folder, cache="always"), input_size=(3, 16, 16))
    assert load(on(folder, cache="auto"), input_size=(3, 16, 16)).test.pixels is None
    memory.available = 10_000  # enough for these, but the rest of the program needs memory too
    assert load(on(folder, cache="auto"), input_size=(3, 16, 16)).test.pixels is None
