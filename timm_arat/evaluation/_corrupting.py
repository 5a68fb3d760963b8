"""Common corruptions of Hendrycks and Dietterich (arXiv:1903.12261), by the package imagecorruptions-imaug.

It is the authors' code for ImageNet-C, kept alive: the same functions and strengths, with the motion blur and the snow
computed without ImageMagick, and six pictures of frost in the place of five.
"""

import inspect
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..names import nearest

PACKAGES = ("imagecorruptions-imaug", "numpy", "scipy", "scikit-image", "opencv-python", "pillow")  # a result's pixels
# The 15 of the benchmark, in the paper's order, and the four that the authors keep for choosing hyperparameters.
COMMON = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels a side, the library's bound


def library() -> ModuleType:
    """The package, which takes a second to import.

    Raises:
        ImportError: it is not installed; the message says how.
    """
    try:
        import imagecorruptions
    except ImportError as error:
        raise ImportError(
            f"corruptions need imagecorruptions-imaug ({error}): pip install timm_arat[corruptions]"
        ) from error
    return imagecorruptions


def check_names(corruptions: Sequence[str], severities: Sequence[int]) -> None:
    """ValueError for a corruption or a severity that there is not, or one that is named twice."""
    for what, given, known in (
        ("corruptions", corruptions, (*COMMON, *EXTRA)),
        ("severities", severities, SEVERITIES),
    ):
        if isinstance(given, str | int) or not given or len(set(given)) < len(given):
            raise ValueError(f"{what}={given!r}, wanted several, each once, such as {known[:2]}")
        for each in given:
            if each not in known:
                raise ValueError(f"{what} has {each!r}: {nearest(str(each), map(str, known))}")


def check_images(x: Tensor) -> None:
    """ValueError unless the images, NxCxHxW, are such that the library takes them."""
    channels, height, width = x.shape[1:]
    if channels != 3 or min(height, width) < SMALLEST:
        raise ValueError(
            f"images are {channels}x{height}x{width}, and the corruptions are made for three channels and at least "
            f"{SMALLEST} pixels a side: give a model and images that are larger, in colour"
        )


def corrupt(x: Tensor, positions: Sequence[int], corruption: str, severity: int, seed: int) -> Tensor:
    """The corrupted images, NxCxHxW in [0, 1] in steps of 1/255, on the CPU; x likewise, rounded to such steps.

    The noise of an image depends on nothing but its position in the data set, the corruption, the severity, the seed
    and the image's size, so every model sees the same images. numpy's global generator is left as it was.
    """
    make = library().corrupt
    takes_seed = "seed" in inspect.signature(library().corruption_dict[corruption]).parameters
    levels = (x.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    found = np.empty_like(levels)
    with _own_generator():
        for row, (image, position) in enumerate(zip(levels, positions, strict=True)):
            drawn = _seed(seed, position, corruption, severity)
            np.random.seed(drawn)
            # Some draw from a generator of their own, which is not the global one.
            own: dict[str, Any] = {"seed": drawn} if takes_seed else {}
            found[row] = make(image, severity=severity, corruption_name=corruption, **own)
    return torch.from_numpy(found).permute(0, 3, 1, 2).float() / 255


def _seed(seed: int, position: int, corruption: str, severity: int) -> int:
    """A seed of 32 bits for one image."""
    entropy = [seed, position, zlib.crc32(corruption.encode()), severity]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


@contextmanager
def _own_generator() -> Iterator[None]:
    kept = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(kept)
