"""Folders: which folder is the class of an image, whatever lies deeper, beside it or is empty."""

import tarfile
from pathlib import Path

import pytest
from PIL import Image
from timm.data.readers import get_img_extensions

from timm_arat.data import DataConfig, load


def fill(split: Path, *paths: str) -> None:
    for path in paths:
        (split / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (split / path).mkdir(parents=True, exist_ok=True)
        elif path.endswith((".png", ".JPEG")):
            Image.new("RGB", (8, 8)).save(split / path)
        else:
            (split / path).write_text("text")


def read(root: Path, name="folder"):
    return load(DataConfig(name=name, root=str(root)), input_size=(3, 8, 8), splits=["test"])


def test_tiny_imagenet_as_unpacked_has_the_classes_of_the_first_folder(tmp_path):
    fill(tmp_path / "test", "n02/images/n02_0.JPEG", "n02/n02_boxes.txt", "n01/images/n01_0.JPEG", "n10/images/a.JPEG")
    data = read(tmp_path)
    assert data.class_names == ("n01", "n02", "n10") and data.test.labels.tolist() == [0, 1, 2]
    assert data.notes == ("test: left out, being no image by its name or in no class's folder: 'n02/n02_boxes.txt'",)


def test_groups_of_classes_are_read_as_timm_does_and_names_that_collide_are_refused(tmp_path):
    fill(tmp_path / "test", "pets/cat/0.png", "pets/dog/0.png", "plants/rose/0.png", "plants/oak/")
    data = read(tmp_path)
    assert data.class_names == ("cat", "dog", "oak", "rose") and data.test.labels.tolist() == [0, 1, 3]
    fill(tmp_path / "test", "plants/cat/0.png")
    with pytest.raises(ValueError, match="pets/cat and plants/cat would be one class 'cat'; keep each class in one"):
        read(tmp_path)


def test_a_class_with_images_of_its_own_and_in_folders_below_is_one_class(tmp_path):
    fill(tmp_path / "test", "cat/0.png", "cat/more/1.png", "cat/again/2.png", "dog/0.png")
    data = read(tmp_path)
    assert data.class_names == ("cat", "dog") and data.test.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("name", ["folder", "torch/folder"])
def test_an_empty_class_keeps_its_name_and_number(tmp_path, name):
    fill(tmp_path / "test", "ant/", "bee/0.png", "cat/.gitkeep", "dog/0.png")
    data = read(tmp_path, name)
    assert data.class_names == ("ant", "bee", "cat", "dog") and data.test.labels.tolist() == [1, 3]
    assert data.num_classes == 4
    assert data.notes[-1] == "test: 2 of 4 classes have no image: 'ant', 'cat'"
    fill(tmp_path / "test", "__MACOSX/dog/._0.png")
    assert read(tmp_path, name).num_classes == (4 if name == "folder" else 5)  # torchvision's reader knows no exception


def test_numbers_in_names_sort_as_numbers_and_hidden_or_loose_files_are_left_out(tmp_path):
    fill(tmp_path / "test", "10/0.png", "9/0.png", "9/._0.png", ".ipynb_checkpoints/0.png", "loose.png")
    data = read(tmp_path)
    assert data.class_names == ("9", "10") and sorted(data.test.labels.tolist()) == [0, 1]
    assert data.notes == ("test: left out, being no image by its name or in no class's folder: 'loose.png'",)
    fill(tmp_path / "flat" / "test", "0.png", "1.png")
    with pytest.raises(ValueError, match="has no images in folders; wanted one folder a class"):
        read(tmp_path / "flat")


def test_an_archive_is_read_as_the_folder_in_it(tmp_path):
    paths = ("b/images/0.png", "a/images/0.png", "a/readme.txt", "empty/")
    fill(tmp_path / "folder" / "test", *paths)
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "test.tar", "w") as tar:
        tar.add(tmp_path / "folder" / "test", arcname=".")
    for root in ("folder", "tar"):
        data = read(tmp_path / root)
        assert data.class_names == ("a", "b", "empty") and data.test.labels.tolist() == [0, 1]
        assert data.notes[0].endswith("'a/readme.txt'") and data.notes[1].endswith(
            "1 of 3 classes have no image: 'empty'"
        )


def test_timm_s_own_list_of_endings_is_put_back(tmp_path):
    before = get_img_extensions()
    fill(tmp_path / "test", "a/0.png")
    read(tmp_path)
    assert get_img_extensions() == before
