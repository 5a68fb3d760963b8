"""What a safetensors file holds, by its header alone; a torn or foreign one is a ValueError."""

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open


def shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the file `path`, by name; the tensors are not read.

    Raises:
        ValueError: it is no whole safetensors file.
    """
    try:
        with safe_open(str(path), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a whole safetensors file ({said}): write or download it again") from error


def num_weights(path: str | Path) -> int:
    """Numbers in all tensors of the file."""
    return sum(math.prod(shape) for shape in shapes(path).values())
