"""Which options of timm's augmentation a recipe may name, checked before torch is loaded or an image is read."""

from collections.abc import Iterable, Mapping
from typing import Any

from timm_arat.names import nearest

# Of `timm.data.create_transform`.
TRANSFORM = (
    "train_crop_mode", "scale", "ratio", "interpolation", "vflip", "color_jitter", "color_jitter_prob",
    "grayscale_prob", "gaussian_blur_prob", "auto_augment", "re_prob", "re_mode", "re_count",
)  # fmt: skip
# Its others: the setting that decides them, where there is one.
_NOT_TRANSFORM = {
    "input_size": "data.image_size", "hflip": "data.hflip", "crop_pct": "data.crop_pct",
    **dict.fromkeys((
        "is_training", "no_aug", "mean", "std", "re_num_splits", "crop_mode", "crop_border_pixels", "tf_preprocessing",
        "use_prefetcher", "normalize", "separate", "naflex", "patch_size", "max_seq_len", "patchify",
        "patchify_channels_last", "patchify_flatten",
    )),
}  # fmt: skip
# Of `timm.data.Mixup`.
MIXUP = (
    "mixup_alpha", "cutmix_alpha", "cutmix_minmax", "prob", "switch_prob", "mode", "correct_lam", "label_smoothing",
)  # fmt: skip
_NOT_MIXUP = {"num_classes": "data.num_classes", "multi_label": None}

_PROBABILITIES = (
    "vflip", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "re_prob", "prob", "switch_prob",
    "label_smoothing",
)  # fmt: skip
# What an option is without effect without.
_NEEDS = {"color_jitter_prob": "color_jitter", "re_mode": "re_prob", "re_count": "re_prob"}
_OF_RRC = ("train_crop_mode", "scale", "ratio")


def check_transform(options: Mapping[str, Any], crop: str) -> None:
    """ValueError unless `options` (data.transform) are known and each has an effect beside `crop` (data.crop)."""
    _check_names("data.transform", options, TRANSFORM, _NOT_TRANSFORM)
    _check_probabilities("data.transform", options)
    for name in options:
        if name in _NEEDS and _NEEDS[name] not in options:
            raise ValueError(f"data.transform.{name} has no effect without {_NEEDS[name]}: give it too")
        if name in _OF_RRC and crop != "rrc":
            raise ValueError(f"data.transform.{name} is of random resized crops: set data.crop rrc, or leave it out")
    if "interpolation" in options and crop != "rrc" and not options.get("auto_augment"):
        raise ValueError("data.transform.interpolation has no effect without data.crop rrc or auto_augment")
    if options.get("auto_augment") and "color_jitter" in options and "3a" not in str(options["auto_augment"]):
        raise ValueError("data.transform: timm leaves out color_jitter beside auto_augment; leave out one of the two")
    for name in ("scale", "ratio"):
        if name in options:
            _check_range(f"data.transform.{name}", options[name])
    count = options.get("re_count", 1)
    if not (isinstance(count, int) and count >= 1):
        raise ValueError(f"data.transform.re_count={count!r} is not a whole number of at least 1")


def check_mixup(options: Mapping[str, Any], batch_size: int) -> None:
    """ValueError unless `options` (data.mixup) are known, mix something and fit batches of `batch_size`."""
    _check_names("data.mixup", options, MIXUP, _NOT_MIXUP)
    if not options:
        return
    _check_probabilities("data.mixup", options)
    for name in ("mixup_alpha", "cutmix_alpha"):
        if not (_is_number(alpha := options.get(name, 0)) and alpha >= 0):
            raise ValueError(f"data.mixup.{name}={alpha!r} is not a number of at least 0, which is off")
    mixes, cuts = bool(options.get("mixup_alpha")), bool(options.get("cutmix_alpha") or options.get("cutmix_minmax"))
    if not (mixes or cuts):
        raise ValueError("data.mixup mixes nothing: give mixup_alpha, cutmix_alpha or cutmix_minmax")
    if "switch_prob" in options and not (mixes and cuts):
        raise ValueError("data.mixup.switch_prob has no effect unless mixup_alpha and cutmix_alpha are both given")
    if options.get("cutmix_minmax"):
        _check_range("data.mixup.cutmix_minmax", options["cutmix_minmax"])
        if "cutmix_alpha" in options:
            raise ValueError("data.mixup: timm takes cutmix_minmax in place of cutmix_alpha; leave out one of the two")
    if options.get("mode", "batch") not in ("batch", "pair", "elem"):
        raise ValueError(f"data.mixup.mode={options['mode']!r} is not one of batch, pair, elem")
    if batch_size % 2:
        raise ValueError(f"data.mixup mixes the images of a batch in pairs: data.batch_size={batch_size} is odd")


def why_no_grid(transform: Mapping[str, Any], mixup: Mapping[str, Any], crop: str) -> str:
    """Why a pixel of a training image has no place before augmentation, with the way out; empty where it has one."""
    if crop == "rrc":
        return "data.crop=rrc resamples its pixels, so none has a place before it: set pad4 or none"
    if moving := sorted(set(transform) - {"vflip"}):
        return (
            f"data.transform ({', '.join(moving)}) changes pixels at random, so they cannot be followed to their place "
            "before it: leave it out, vflip excepted"
        )
    return "data.mixup makes one image of two, so a pixel has no one place before it: leave it out" if mixup else ""


def _check_names(
    where: str, options: Mapping[str, Any], known: Iterable[str], others: Mapping[str, str | None]
) -> None:
    for name in options:
        if name in others:
            instead = f"; set {others[name]}" if others[name] else ", so it is no setting"
            raise ValueError(f"{where}.{name} is decided by timm_arat itself{instead}")
        if name not in known:
            raise ValueError(f"{where} has no option {name!r}; {nearest(str(name), known)}")


def _check_probabilities(where: str, options: Mapping[str, Any]) -> None:
    for name in _PROBABILITIES:
        if name in options and not (_is_number(options[name]) and 0 <= options[name] <= 1):
            raise ValueError(f"{where}.{name}={options[name]!r} is not a number in [0, 1]")


def _check_range(where: str, value: Any) -> None:
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    if not (is_pair and 0 < value[0] <= value[1]):
        raise ValueError(f"{where}={value!r} is not a pair [low, high] with 0 < low <= high")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
