"""Labels mean classes by name, between the splits of a data set and between data and model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from timm_arat.data import DataConfig, load, match_labels, tensors
from timm_arat.data.labels import _named


def folder(root: Path, split: str, *names: str) -> None:
    """A split in which each class has one image, 2x2 and as grey as its name says."""
    for name in names:
        (root / split / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), int(name)).save(root / split / name / "0.png")


def test_equal_lists_are_the_identity_without_a_note():
    for names in (("cat", "dog"), ("0", "1", "2")):
        found = match_labels(names, list(names))
        assert found.to_other.tolist() == list(range(len(names))) and found.note == ""


@pytest.mark.parametrize(
    "data, model, wanted",
    [
        (("dog", "cat"), ("cat", "dog"), [1, 0]),
        (("cat", "fox"), ("cat", "dog", "fox"), [0, 2]),
        (("1", "10", "2"), ("1", "2", "10"), [0, 2, 1]),  # a reader that sorts numbers as words
        (("0", "2", "3"), ("0", "1", "2", "3"), [0, 2, 3]),  # a folder without class 1
    ],
)
def test_other_orders_and_subsets_go_by_name(data, model, wanted):
    found = match_labels(data, model)
    assert found.to_other.tolist() == wanted and found.to_other.dtype == torch.int64 and found.note == ""


@pytest.mark.parametrize(
    "data, model, note",
    [
        (("0", "1"), ("cat", "dog", "fox"), "the classes of the data have numbers for names"),
        (("cat", "dog"), ("0", "1"), "the classes of the model have numbers for names"),
        (("cat", "dog"), None, "the model does not name its classes"),
        (("cat", "dog"), (), "the model does not name its classes"),
    ],
)
def test_without_names_labels_go_by_position_and_that_is_said(data, model, note):
    found = match_labels(data, model)
    assert found.to_other.tolist() == [0, 1] and note in found.note


@pytest.mark.parametrize(
    "data, model, wanted",
    [
        (("cat", "fox"), ("cat", "dog"), "the data have 1 classes that the model has not, 'fox'; the data's classes"),
        (("cat",), ("0", "1"), "'cat'"),  # one of two unnamed classes: which, nothing says
        (("0", "1", "2"), ("cat", "dog"), "'0', '1', '2'; the data's classes are '0', '1', '2', the model's 'cat'"),
        (("cat", "cat"), ("cat", "dog"), "several classes of the data have one name, 'cat'"),
        (("cat",), ("cat", "dog", "dog"), "several classes of the model have one name, 'dog'"),
        (tuple("abcdefgh"), tuple("ABCDEFGH"), r"'a', 'b', 'c', 'd', 'e', ... \(8 in all\)"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused_with_both_lists(data, model, wanted):
    with pytest.raises(ValueError, match=wanted):
        match_labels(data, model)


def test_a_split_that_lacks_a_class_or_its_folder_keeps_the_training_split_s_numbers(tmp_path):
    folder(tmp_path, "train", "10", "20", "30", "40")
    folder(tmp_path, "val", "40", "10")
    folder(tmp_path, "test", "20", "40")
    (tmp_path / "test" / "30").mkdir()
    for name in ("folder", "torch/folder"):
        config = DataConfig(name=name, root=str(tmp_path), val_split="val")
        data = load(config, input_size=(3, 2, 2))
        assert data.class_names == ("10", "20", "30", "40") and data.num_classes == 4
        for part in (data.train, data.val, data.test):
            x, y = tensors(part)
            assert (x[:, 0, 0, 0] * 255).round().tolist() == [10.0 * (label + 1) for label in y.tolist()]
        assert data.val.labels.tolist() == [0, 3] and data.test.labels.tolist() == [1, 3]


def test_a_class_that_training_lacks_is_refused_only_if_it_has_images(tmp_path):
    folder(tmp_path, "train", "10", "20")
    folder(tmp_path, "test", "10", "20")
    (tmp_path / "test" / "15").mkdir()
    config = DataConfig(name="folder", root=str(tmp_path))
    assert load(config, input_size=(3, 2, 2)).test.labels.tolist() == [0, 1]
    folder(tmp_path, "test", "15")
    with pytest.raises(ValueError, match="split 'test' has images of the classes '15', which 'train' has not; it has"):
        load(config, input_size=(3, 2, 2))


@pytest.mark.parametrize("other", [0, 1, 2.5])
def test_labels_of_two_kinds_are_refused(other):
    with pytest.raises(ValueError, match=f"here: labels are strings and others, {other!r} for one; wanted one kind"):
        _named(["a", other], "here")


def test_columns_of_strings_are_classes_by_name_and_other_labels_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs timm_arat[data]")
    path = tmp_path / "pixel.png"
    Image.new("RGB", (2, 2)).save(path)

    def config(folder, **labels):
        for split, column in labels.items():
            table = {"image": [str(path)] * len(column), "label": column}
            made = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
            (tmp_path / folder).mkdir(exist_ok=True)
            made.to_parquet(tmp_path / folder / f"{split}-00000-of-00001.parquet")
        return DataConfig(name=f"hfds/{tmp_path / folder}", root=str(tmp_path / "cache"))

    named = config("named", train=["dog", "cat", "dog", "ape"], test=["dog", "ape"])
    data = load(named, input_size=(3, 2, 2))
    assert data.class_names == ("ape", "cat", "dog")
    assert data.train.labels.tolist() == [2, 1, 2, 0] and data.test.labels.tolist() == [2, 0]
    alone = load(named, input_size=(3, 2, 2), splits=["test"])
    assert alone.class_names == ("ape", "dog") and alone.test.labels.tolist() == [1, 0]

    numbered = load(config("numbered", train=[0, 1, 2], test=[1, 0]), input_size=(3, 2, 2))
    assert numbered.class_names == ("0", "1", "2") and numbered.test.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="a label is 0.5, wanted a whole number"):
        load(replace(config("half", train=[0.5, 1.0], test=[0.5])), input_size=(3, 2, 2))
    with pytest.raises(ValueError, match="a label is not one class index"):
        load(config("lists", train=[[0, 1]], test=[[0]]), input_size=(3, 2, 2))
