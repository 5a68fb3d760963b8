"""The random generators of this process, of which a resume needs the states."""

import random
from typing import Any

import numpy as np
import torch


def states() -> dict[str, Any]:
    """Those of torch (CPU and this process's CUDA device), numpy and `random`, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        "random": random.getstate(),
    }


def restore(found: dict[str, Any]) -> None:
    """Put every generator into the state that `states` found."""
    torch.set_rng_state(found["torch"])
    if found["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(found["random"])
