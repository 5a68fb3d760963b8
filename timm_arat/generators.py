"""The random generators of this process: their states, and a place that leaves them alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def forked() -> Iterator[None]:
    """Torch's generators, the CPU's and those of its accelerators (CUDA, MPS, XPU), are put back on the way out.

    Of all devices, since `torch.manual_seed` seeds all of them. The generators of numpy and Python are not touched.
    """
    with torch.random.fork_rng(devices=range(torch.accelerator.device_count())):
        yield


def states() -> dict[str, Any]:
    """Those of torch (CPU and this process's accelerator), numpy and `random`, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "accelerator": _accelerator().get_rng_state() if _accelerator() else None,
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        "random": random.getstate(),
    }


def restore(found: dict[str, Any]) -> None:
    """Put every generator into the state that `states` found."""
    torch.set_rng_state(found["torch"])
    if found["accelerator"] is not None and _accelerator():
        _accelerator().set_rng_state(found["accelerator"])
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(found["random"])


def _accelerator() -> Any:
    """The module of torch for the accelerator of this machine, such as torch.cuda; None without one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.get_device_module(found) if found else None
