"""Logits and pooled features of a timm model in one pass, for any backbone.

logits, features = tap(model, x)                                      # last stage, no hooks: any timm model
logits, features = tap(model, x, layers=("layer4.0.act1", "layer4"))  # named layers, by hooks that live for the pass
logits, features = tap(model, x, layers=paper_layers(model))          # the layers of ARAT's official code
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.resnetv2 import PreActBasic, ResNetV2
from torch import Tensor, nn

from .modes import evaluating
from .names import nearest


def tap(model: nn.Module, x: Tensor, layers: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits NxK and average-pooled features {layer: NxC} of one forward pass.

    Args:
        model: A timm model.
        x: Its input, NxCxHxW, normalised as the model wants it.
        layers: Module names whose outputs are taken; none means the last stage, by `forward_intermediates`. Outputs are
            read as NCHW (4-D) or NLC (3-D); write `name@nhwc` for channels-last feature maps and `name@relu` to pass
            the output through ReLU before pooling.

    Raises:
        ValueError: a layer does not exist (the nearest names are given), its output is not a feature map, or it is
            out of reach of the gradient.
    """
    if not layers:
        final, (last,) = model.forward_intermediates(x, indices=1)  # type: ignore[operator]  # timm's protocol
        return model.forward_head(final), {"last": last.mean((2, 3))}  # type: ignore[operator]
    outputs: dict[str, Tensor] = {}
    handles = []
    try:
        for layer in layers:
            handles.append(_module(model, layer).register_forward_hook(_take(outputs, layer)))
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    silent = [layer for layer in layers if layer not in outputs]
    if silent:
        raise ValueError(
            f"layers {', '.join(silent)} were not called in the forward pass of {type(model).__name__}; gradient "
            "checkpointing calls the blocks of a stage without the stage: name its last block"
        )
    return logits, {layer: _pool(layer, outputs[layer]) for layer in layers}


def tap_dims(model: nn.Module, layers: Sequence[str] = (), *, in_chans: int | None = None) -> dict[str, int]:
    """Width C of every feature that `tap` gives. Named layers cost one pass over a black image, in eval mode.

    The image has the size of the patch embedding or else of `pretrained_cfg`, and `in_chans` channels if given.

    Raises:
        ValueError: as `tap` does, or the model lacks what timm's models say of themselves.
    """
    timm_model: Any = model
    known = "feature_info" if not layers else "pretrained_cfg"
    if not getattr(model, known, None) or (layers and "input_size" not in timm_model.pretrained_cfg):
        raise ValueError(
            f"{type(model).__name__} is no timm model, its {known} "
            + ("has no input_size: " if layers else "is missing: name the layers whose features to take, or ")
            + "build it with timm.create_model"
        )
    if not layers:
        return {"last": timm_model.feature_info[-1]["num_chs"]}
    weight = next(model.parameters())
    channels, *size = timm_model.pretrained_cfg["input_size"]
    # The argument img_size=... leaves the cfg as it is.
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or size
    x = weight.new_zeros((1, in_chans or channels, *size))
    with evaluating(model), torch.no_grad():
        return {layer: feature.shape[1] for layer, feature in tap(model, x, layers)[1].items()}


def paper_layers(model: nn.Module) -> tuple[str, ...]:
    """The layers that the official ARAT code regularises, for the two families it has.

    ResNet of basic blocks: ReLU of every `bn1` and `bn2` of the last stage; behind `bn2` that is the residual branch
    before the shortcut is added, a tensor that the network itself never uses (the outputs that it does use are
    `act1` and `act2`). Pre-activation WideResNet: every norm (with its ReLU) of the last stage and the final norm.

    Raises:
        ValueError: another family; name the layers, or leave them out for the last stage.
    """
    if isinstance(model, ResNet):
        stage = str(model.feature_info[-1]["module"])
        blocks = list(model.get_submodule(stage).children())
        if all(isinstance(block, BasicBlock) for block in blocks):
            return tuple(f"{stage}.{i}.{norm}@relu" for i in range(len(blocks)) for norm in ("bn1", "bn2"))
    if isinstance(model, ResNetV2):
        stage = f"stages.{len(model.stages) - 1}"
        blocks = list(model.stages[-1].blocks)  # type: ignore[arg-type]
        if all(isinstance(block, PreActBasic) for block in blocks):
            norms = [f"{stage}.blocks.{i}.{norm}" for i in range(len(blocks)) for norm in ("norm1", "norm2")]
            return (*norms, "norm")
    raise ValueError(
        f"the paper has no layers for {type(model).__name__}, only for ResNets of basic blocks and pre-activation "
        "WideResNets: name the layers, or leave them out for the last stage"
    )


def _module(model: nn.Module, layer: str) -> nn.Module:
    name, *options = layer.split("@")
    if unknown := set(options) - {"nhwc", "relu"}:
        raise ValueError(f"layer {layer!r}: @{' @'.join(unknown)} is not known, only @nhwc and @relu are")
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise ValueError(f"no layer {name!r} in {type(model).__name__}; {nearest(name, filter(None, modules), most=3)}")
    return modules[name]


def _take(outputs: dict[str, Tensor], layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    with_gradient = torch.is_grad_enabled()

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"layer {layer!r} gives {kind}, not one NCHW, NHWC or NLC feature map")
        if torch.is_grad_enabled() != with_gradient:
            raise ValueError(
                f"layer {layer!r} is inside a reentrant gradient checkpoint, through which its features would get no "
                "gradient: call timm.layers.set_reentrant_ckpt(False), or tap the last stage (no layers)"
            )
        # A copy: timm overwrites many outputs of norms in place with what follows them. Nothing else here: a
        # checkpointed block runs again in backward, then without this hook, and must save the same tensors.
        outputs[layer] = output.clone()

    return hook


def _pool(layer: str, output: Tensor) -> Tensor:
    options = layer.split("@")[1:]
    space = (1,) if output.ndim == 3 else (1, 2) if "nhwc" in options else (2, 3)
    return (torch.relu(output) if "relu" in options else output).mean(space)
