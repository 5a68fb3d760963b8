"""What a recipe says about its images."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Images, their splits and their augmentation; pixels are in [0, 1] and never normalised here.

    Attributes:
        name: Data set: digits, or any name of timm.data.create_dataset (folder, torch/cifar10, hfds/NAME_OR_FOLDER).
        root: Folder of the images (folder, torch/...) or of downloads (hfds/...).
        train_split: Split to train on.
        test_split: Split to test on, once, at the end.
        val_size: Images held out of the training split to choose the checkpoint by.
        val_seed: Seed of the choice of held-out images.
        batch_size: Training images per process and step.
        eval_batch_size: Evaluation images per process and step.
        num_classes: Number of classes; null takes the data set's.
        input_key: Column of the images, where they have another than timm's default (hfds/...).
        target_key: Column of the labels, likewise.
        image_size: Side of the square image in pixels; null takes the model's.
        in_chans: 3 for RGB, 1 for grey.
        crop: Training crop: pad4 (a random crop after padding by 4), rrc (a random resized crop) or none.
        hflip: Probability of a horizontal flip in training.
        crop_pct: Share of the resized image that evaluation's centre crop keeps; images of the right size stay whole.
        interpolation: How images are resized.
        download: Whether torch/... sets may be downloaded to root.
        workers: Loader processes per process; 0 loads in the main one.
        cache: Whether to decode once into memory: auto does where images have one size and need less than 2 GiB.
    """

    name: str = "digits"
    root: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    val_size: int = 0
    val_seed: int = 0
    batch_size: int = 128
    eval_batch_size: int = 256
    num_classes: int | None = None
    input_key: str | None = None
    target_key: str | None = None
    image_size: int | None = None
    in_chans: int = 3
    crop: Literal["pad4", "rrc", "none"] = "none"
    hflip: float = 0.0
    crop_pct: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    download: bool = False
    workers: int = 0
    cache: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "num_classes", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is not at least 1")
        for name in ("val_size", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative")
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans={self.in_chans} is neither 1 (grey) nor 3 (RGB)")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip={self.hflip} is not a probability in [0, 1]")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct} is not in (0, 1]")
        if self.train_split == self.test_split:
            raise ValueError(f"test_split={self.test_split!r} is the training split too; test on other images")
