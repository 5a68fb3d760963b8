"""Names under which RobustBench's `load_model` finds our checkpoints.

It asks timm for `<id>_<dataset>_<threat>`, in lower case with '-' as '_' (RobustBench 1.1, robustbench/utils.py), with
`num_classes`, and gives the model images in [0, 1]: `load_model('Waseda2025Rethinking_resnet18', dataset='cifar10')`.
"""

from typing import Any

import timm
from timm.models import register_model
from torch import nn

from ..pixels import in_pixels
from .arat import default_cfgs

DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "in1k": "imagenet"}


def _register(name: str, tag: str) -> None:
    dataset, threat = tag.split("_")
    backbone = name.removesuffix("_arat").removesuffix("_cifar")

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        kwargs["pretrained_cfg"] = kwargs.get("pretrained_cfg") or tag
        model = timm.model_entrypoint(name)(pretrained=pretrained, **kwargs)
        wrapped = in_pixels(model)
        if wrapped.is_identity:
            return model
        wrapped.default_cfg = model.pretrained_cfg  # RobustBench reads the image size there
        return wrapped

    create.__name__ = create.__qualname__ = (
        f"waseda2025rethinking_{backbone}_{DATASETS[dataset]}_{threat.rstrip('0123456789')}"
    )
    create.__doc__ = f"{name}.{tag} for RobustBench: takes images in [0, 1]."
    register_model(create)


for _name, _cfgs in list(default_cfgs.items()):
    for _tag in _cfgs.tags:
        if _tag.partition("_")[0] in DATASETS and _tag.count("_") == 1:
            _register(_name, _tag)
