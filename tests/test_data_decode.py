"""Image files: every kind of pixel becomes the byte that it means, and a file that cannot be read is named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from timm_arat.data import DataConfig, load, tensors
from timm_arat.data.decode import decode, extensions, to_mode

ROW = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def values(image, mode="RGB"):
    return np.asarray(to_mode(image, mode)).tolist()


def test_sixteen_bits_are_scaled_and_not_clipped_to_white():
    for form in ("PNG", "TIFF"):
        read = decode(saved(Image.fromarray(ROW), form), "L", "it")
        assert np.asarray(read).tolist() == [[0, 1, 128, 255]]
    assert values(Image.fromarray(ROW)) == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]
    assert values(Image.fromarray(ROW.astype(np.int32)), "L") == [[0, 1, 128, 255]]
    big_endian = Image.frombytes("I;16B", (4, 1), ROW.astype(">u2").tobytes())
    assert values(big_endian, "L") == [[0, 1, 128, 255]]
    every = np.arange(65536, dtype=np.uint16)[None]
    assert np.abs(np.array(values(Image.fromarray(every), "L")) - every / 257).max() <= 0.5


def test_floats_are_pixels_in_0_1_and_others_have_no_known_range():
    assert values(Image.fromarray(np.array([[0, 0.25, 1, -3e-8]], dtype=np.float32)), "L") == [[0, 64, 255, 0]]
    for bad in (255.0, -0.5, float("nan")):
        file = saved(Image.fromarray(np.full((2, 2), bad, dtype=np.float32)), "TIFF")
        with pytest.raises(ValueError, match=r"image 7 cannot be read: its pixels \(Pillow's mode F\) are in"):
            decode(file, "RGB", "image 7")
    with pytest.raises(ValueError, match=r"in \[70000, 70000\], wanted \[0, 65535\]"):
        to_mode(Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), "L")


def test_transparent_pixels_lie_on_white_and_opaque_ones_keep_their_bytes():
    rgba = np.array([[[200, 10, 30, 255], [200, 10, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    wanted = [[[200, 10, 30], [255, 255, 255], [204, 204, 204]]]
    assert values(Image.fromarray(rgba)) == wanted
    assert values(decode(saved(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), "RGB", "it")) == wanted
    assert values(Image.fromarray(np.array([[[90, 255], [90, 0]]], dtype=np.uint8), "LA"), "L") == [[90, 255]]
    opaque = np.random.default_rng(0).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    opaque[..., 3] = 255
    assert values(Image.fromarray(opaque)) == opaque[..., :3].tolist()
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert values(palette) == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert values(decode(saved(palette, "PNG", transparency=1), "RGB", "it")) == [
        [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
    ]


def test_print_colours_and_bitmaps_are_converted_as_pillow_does():
    cmyk = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8), "CMYK")
    assert values(cmyk) == [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]]
    assert values(Image.new("1", (1, 1), 1)) == [[[255, 255, 255]]]
    assert decode(saved(cmyk, "JPEG"), "L", "it").mode == "L"


def test_files_that_are_cut_short_or_no_images_are_named():
    whole = saved(Image.effect_noise((64, 64), 90), "PNG").getvalue()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"\x89PNG\r\n\x1a\n" + b"x" * 40):
        with pytest.raises(ValueError, match="image 3 .cat/1.png. cannot be read: "):
            decode(io.BytesIO(content), "RGB", "image 3 (cat/1.png)")


def test_a_decompression_bomb_is_named_with_the_way_out(monkeypatch):
    file = saved(Image.new("L", (30, 30)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(ValueError, match=r"image 3 is too large: .*900 pixels.* raise PIL.Image.MAX_IMAGE_PIXELS"):
        decode(file, "RGB", "image 3")


def test_the_endings_are_those_of_images_that_pillow_opens():
    assert {".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm"} <= extensions()
    assert not {".pdf", ".txt", ".mpg", ".h5", ".json", ".npy", ".tar"} & extensions()


@pytest.mark.parametrize("name", ["folder", "torch/folder"])
def test_every_reader_of_folders_takes_every_kind_of_file(tmp_path, name):
    colours = {"bmp": "red", "gif": "lime", "jpe": "black", "png": "blue", "tif": "yellow", "webp": "white"}
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        for ending, colour in colours.items():
            image = Image.new("RGB", (8, 8), colour)
            form = {"jpe": "JPEG", "tif": "TIFF"}.get(ending, ending.upper())
            image.save(tmp_path / split / "cat" / f"{ending}.{ending.upper()}", form, lossless=True)
        Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)).save(tmp_path / split / "cat" / "z16.png")
        (tmp_path / split / "cat" / "notes.txt").write_text("no image")
        (tmp_path / split / "cat" / ".DS_Store").write_text("hidden")
    data = load(DataConfig(name=name, root=str(tmp_path)), input_size=(3, 8, 8))
    x, _ = tensors(data.test)
    wanted = [list(colour) for colour in map(_rgb, colours.values())] + [[128, 128, 128]]
    assert (x[:, :, 3, 3] * 255).tolist() == wanted
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x))
    line = "left out, being no image by its name or in no class's folder: 'cat/notes.txt'"
    assert data.notes == (f"train: {line}", f"test: {line}")


def _rgb(colour):
    image = Image.new("RGB", (1, 1))
    ImageDraw.Draw(image).point((0, 0), colour)
    return image.getpixel((0, 0))
