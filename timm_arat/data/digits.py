"""scikit-learn's handwritten digits: a real data set that comes inside a pip package."""

import torch

from timm_arat.data.sources import Source
from timm_arat.data.strata import subset

_NUM_TEST = 360  # a fifth


def digits(split: str, in_chans: int) -> Source:
    """The 1,797 images of 8x8 pixels, grey, 16 shades and white, split 1,437 to 360 by class with a fixed seed.

    Source: `sklearn.datasets.load_digits` (the test half of UCI's optical recognition of handwritten digits).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f", which is broken here ({error})"
        raise ImportError(f"data set 'digits' needs scikit-learn{reason}: pip install timm_arat[digits]") from error
    if split not in ("train", "test"):
        raise ValueError(f"data set 'digits' has no split {split!r}; it has train and test")
    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).long()
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[subset(labels, _NUM_TEST, seed=0)] = True
    chosen = is_test if split == "test" else ~is_test
    # NxCx8x8
    x = torch.from_numpy(bunch.images).float()[chosen, None].expand(-1, in_chans, -1, -1) / 16
    return Source(x.unbind(), labels[chosen], tuple(map(str, range(10))))
