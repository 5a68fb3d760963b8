"""What a recipe says about its images."""

from dataclasses import dataclass, field
from typing import Any, Literal

from timm_arat.data.options import check_mixup, check_transform


@dataclass(frozen=True)
class DataConfig:
    """Images, their splits and their augmentation; pixels are in [0, 1] and never normalised here.

    As timm and torchvision, no reader follows a photograph's EXIF orientation: pixels are taken as they are stored.

    Attributes:
        name: Data set: digits, or any name of timm.data.create_dataset (folder, torch/cifar10, hfds/NAME_OR_FOLDER).
        root: Folder of the images (folder, torch/...) or of downloads (hfds/...).
        train_split: Split to train on.
        test_split: Split to test on, once, at the end.
        val_split: Split to choose the checkpoint by, where the data set has one besides those two.
        val_size: Images held out of the training split to choose the checkpoint by, where there is no val_split.
        val_seed: Seed of the choice of held-out images.
        batch_size: Training images per process and step.
        drop_last: Leave out the images at an epoch's end that do not fill a batch (others each time), so that every
            norm sees a full batch; false trains on them as a smaller batch, as the official ARAT code.
        num_classes: Number of classes; null takes the data set's.
        input_key: Column of the images, where they have another than timm's default (hfds/...).
        target_key: Column of the labels, likewise.
        image_size: Side of the square image in pixels; null takes the model's.
        in_chans: 3 for RGB, 1 for grey.
        crop: Training crop: pad4 (a random crop after padding by 4), rrc (a random resized crop) or none.
        hflip: Probability of a horizontal flip in training.
        transform: Further augmentation by options of timm.data.create_transform: auto_augment, color_jitter, re_prob
            ... (scale, ratio and train_crop_mode with crop rrc). What is not named is off. It comes after crop and
            flip, and pixels stay in [0, 1]: random erasing fills with ImageNet's mean, or with noise around it.
        mixup: Mixing of the images of a batch in pairs by options of timm.data.Mixup: mixup_alpha, cutmix_alpha, prob,
            mode, label_smoothing ... What is not named is off. Labels become soft, and batch_size must be even.
        crop_pct: Share of the resized image that evaluation's centre crop keeps; where all images of the data set have
            the right size they stay whole.
        interpolation: How images are resized.
        download: Whether torch/... sets may be downloaded to root.
        workers: Loader processes per process; 0 loads in the main one.
        cache: Whether to decode once into memory: auto does where images have one size and need less than
            2 GiB and half of the free memory; always is refused where they need more than is free.
    """

    name: str = "digits"
    root: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    val_split: str | None = None
    val_size: int = 0
    val_seed: int = 0
    batch_size: int = 128
    drop_last: bool = True
    num_classes: int | None = None
    input_key: str | None = None
    target_key: str | None = None
    image_size: int | None = None
    in_chans: int = 3
    crop: Literal["pad4", "rrc", "none"] = "none"
    hflip: float = 0.0
    transform: dict[str, Any] = field(default_factory=dict)
    mixup: dict[str, Any] = field(default_factory=dict)
    crop_pct: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    download: bool = False
    workers: int = 0
    cache: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_classes", "image_size"):
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
        if self.val_split is not None and self.val_size:
            raise ValueError(
                f"val_split={self.val_split!r} and val_size={self.val_size} are two sources of validation images: set "
                "val_size=0 (a recipe may have given it), or leave val_split out"
            )
        if self.crop not in ("pad4", "rrc", "none"):
            raise ValueError(f"crop={self.crop!r} is not one of pad4, rrc, none")
        check_transform(self.transform, self.crop)
        check_mixup(self.mixup, self.batch_size)

    @property
    def validates(self) -> bool:
        """Whether there are images to choose the checkpoint by."""
        return bool(self.val_size) or self.val_split is not None
