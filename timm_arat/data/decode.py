"""From any file that Pillow opens to 8-bit grey or RGB, with one rule for each kind of pixel."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO

import numpy as np
from PIL import Image

TOLERANCE = 1e-6  # by which a float pixel may leave [0, 1]: what float32 arithmetic loses; it is clamped

# What can be named like an image but holds none that Pillow could decode by itself.
_NO_RASTER = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"}


@cache
def extensions() -> frozenset[str]:
    """The endings, in lower case and with their dot, of the raster images that Pillow opens."""
    known = Image.registered_extensions()  # loads every plugin
    return frozenset(ending for ending, kind in known.items() if kind in Image.OPEN and kind not in _NO_RASTER)


def decode(file: IO[bytes], mode: str, what: str) -> Image.Image:
    """The first frame of the image in `file` as `mode` (L or RGB), see `to_mode`; errors call it `what`.

    Raises:
        ValueError: it is no image, cut short, of pixels without a known range, or so large that Pillow takes it for a
            decompression bomb: more than twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _errors(what):
        return to_mode(Image.open(file), mode)


def header_size(file: IO[bytes], what: str) -> tuple[int, int]:
    """H, W of the image in `file`, whose pixels are not decoded; errors are those of `decode`."""
    with _errors(what):
        image = Image.open(file)
        return image.height, image.width


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{what} is too large: {error} Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from error
    except Exception as error:  # each of Pillow's decoders fails in its own way, with SyntaxError, struct.error
        reason = str(error) or type(error).__name__
        raise ValueError(f"{what} cannot be read: {reason}; repair it, or take it out") from error


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` as 8-bit `mode`, L or RGB.

    Pillow's own conversion, which keeps the bytes of grey and RGB images and of palettes, but for two kinds that it
    gets wrong: pixels of more than 8 bits, which it clips to white, are scaled (16 bits divided by 257, floats in
    [0, 1] multiplied by 255, both rounded), and transparent pixels, whose hidden colour it shows, lie on white.

    Raises:
        ValueError: integers outside 16 bits or floats outside [0, 1], whose range the file does not say.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_bytes(np.asarray(image), image.mode)).convert(mode)
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _bytes(pixels: np.ndarray, mode: str) -> np.ndarray:
    """HxW of any number to uint8."""
    values = pixels.astype(np.float64)
    low, high, slack = (0.0, 1.0, TOLERANCE) if mode == "F" else (0.0, 65535.0, 0.0)
    if not (values.min() >= low - slack and values.max() <= high + slack):  # not: so that NaN is caught
        raise ValueError(
            f"its pixels (Pillow's mode {mode}) are in [{values.min():.6g}, {values.max():.6g}], wanted "
            f"[{low:g}, {high:g}]: save it with 8 or 16 bits a channel"
        )
    # Half up: numpy rounds half to even, which no image library does.
    return np.floor(values.clip(low, high) / high * 255 + 0.5).astype(np.uint8)
