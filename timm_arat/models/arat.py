"""`<backbone>_arat`: timm's and our backbones with robust weights, a plain model each.

A name's tags say data and threat, DATA_THREAT: `cifar10_linf8` is CIFAR-10 within 8/255 of linf. Every planned
checkpoint has its tag; one with weights has a folder of hub_cards/ that holds them or says where on the Hub they lie,
and a folder of another tag adds that tag behind the planned ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from timm.models import PretrainedCfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

from .. import norm  # the module: it may be what is just being imported, and imports timm, which imports us
from . import _weights, resnet_cifar, wide_resnet_cifar  # noqa: F401  # their backbones are registered first

# The planned checkpoints. A name without a tag is the first of its tags that has weights, in this order.
IMAGENET = {"in1k_linf4": 1000, "imagenette_linf8": 10}
CIFAR = {"cifar10_linf8": 10, "cifar100_linf8": 100}
SOURCES = ("file", "url", "hf_hub_id", "hf_hub_filename", "state_dict", "source")
default_cfgs: dict[str, Any] = {}


def register(backbone: str, tags: Mapping[str, int] = IMAGENET) -> Callable[..., nn.Module]:
    """Register `<backbone>_arat` with timm: `timm_arat.register('convnextv2_tiny')`.

    The model is the backbone of that name, with the arguments that it takes and one more, `split_norm=True`: both
    branches of its norms, for further training. That is of every BatchNorm, or, in a backbone that has none, of the
    affine parameters of its other norms. Returns the entry point.

    Args:
        backbone: Any name of `timm.list_models()`.
        tags: Number of classes of each planned checkpoint, by its tag, DATA_THREAT, the best first: a name without a
            tag is the first of them that has weights.

    Raises:
        ValueError: timm knows no such backbone.
    """
    if not timm.is_model(backbone):
        raise ValueError(f"register({backbone!r}): timm knows no such model; timm.list_models() names them all")
    name = f"{backbone}_arat"

    def create(
        pretrained: bool = False,
        *,
        split_norm: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        cfg = _resolve(name, backbone, pretrained_cfg, pretrained_cfg_overlay)
        checkpoint = f"{name}.{cfg.tag}" if cfg.tag else name
        local = cfg
        if pretrained and not cfg.state_dict:
            file = _weights.fetch(cfg, checkpoint, cache_dir=cache_dir)
            _weights.describe(cfg, checkpoint, file)
            # Once fetched it is a file, wherever it came from; `source` would send timm there again.
            local = replace(cfg, file=str(file), source=None, custom_load=False)
            kwargs = _weights.model_args(checkpoint, file) | kwargs
        model = timm.model_entrypoint(backbone)(pretrained=pretrained, pretrained_cfg=local, **kwargs)
        if split_norm and pretrained:
            _load_aux(model, cfg, checkpoint, cache_dir)
        elif split_norm:
            has_batchnorm = any(True for _ in norm.batch_norms(model))
            norm.convert_split_norm(model, norms=None if has_batchnorm else "all")
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{backbone}, adversarially trained by ARAT (arXiv:2402.14648). split_norm=True: both branches."
    tags = {**tags, **{tag: 1000 for tag in _weights.tags(name) if tag not in tags}}
    default_cfgs.update(
        generate_default_cfgs({f"{name}.{tag}": _cfg(backbone, name, tag, classes) for tag, classes in tags.items()})
    )
    return register_model(create)


def _cfg(backbone: str, name: str, tag: str, num_classes: int) -> PretrainedCfg:
    """The backbone's own configuration without its weights, or what the checkpoint's config.json says."""
    own: Any = timm.get_pretrained_cfg(backbone, allow_unregistered=True) or PretrainedCfg()
    plain = replace(
        own,
        **dict.fromkeys(SOURCES),
        architecture=backbone,
        tag=tag,
        num_classes=num_classes,
        custom_load=False,
        label_offset=None,
        test_input_size=None,
        test_crop_pct=None,
        crop_pct=1.0 if own.input_size[-1] <= 64 else 0.875,
        license="apache-2.0",
        origin_url=None,
        description=None,
        paper_ids="arXiv:2402.14648",
    )
    return replace(plain, **(_weights.published(f"{name}.{tag}") | {"tag": tag}))


def _resolve(name: str, backbone: str, cfg: Any, overlay: Mapping[str, Any] | None) -> PretrainedCfg:
    """As timm's, with the plain backbone as its architecture; a source in `overlay` replaces the registered one."""
    overlay = dict(overlay or {})
    if any(overlay.get(source) for source in SOURCES):
        overlay = dict.fromkeys(SOURCES) | overlay
    return resolve_pretrained_cfg(name, pretrained_cfg=cfg, pretrained_cfg_overlay=overlay | {"architecture": backbone})


def _load_aux(model: nn.Module, cfg: PretrainedCfg, checkpoint: str, cache_dir: str | Path | None) -> None:
    """The second branch's norms, which are published beside the plain model."""
    try:
        if cfg.state_dict:
            raise _weights.WeightsNotFoundError("a state_dict in memory has no file beside it")
        aux = load_file(_weights.fetch(cfg, checkpoint, _weights.AUX_NORM, cache_dir))
    except _weights.WeightsNotFoundError as error:
        raise _weights.WeightsNotFoundError(
            f"split_norm=True of {checkpoint}: {error}. Only the main branch is known then: load the plain model, and "
            "timm_arat.convert_split_norm(model) starts the second branch as its copy"
        ) from error
    try:
        norm.load_aux_norm(model, aux)
    except ValueError as error:
        raise ValueError(
            f"{_weights.AUX_NORM} of {checkpoint} is of another model (features_only renames its keys: not with "
            f"split_norm): {error}"
        ) from error


for _backbone in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "regnetx_002", "test_convnext3"):
    register(_backbone, IMAGENET)
for _backbone in ("resnet20_cifar", "resnet18_cifar", "resnet50_cifar", "wide_resnet34_10_cifar"):
    register(_backbone, CIFAR)
