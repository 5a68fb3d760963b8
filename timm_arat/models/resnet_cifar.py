"""ResNets with the CIFAR stem: one 3x3 convolution, no pooling, one to four stages of timm's own blocks.

`resnet20_cifar` is the 0.27 M-parameter network of He et al. (arXiv:1512.03385, Sec. 4.2; here with 1x1-convolution
shortcuts, their option B); `resnet18_cifar` is the four-stage network used by most of the adversarial-training
literature (11,173,962 parameters with 10 classes, as the official ARAT code's); `resnet50_cifar` is its sibling of
bottlenecks (23,520,842 parameters).
"""

from typing import Any

from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn


class ResNetCifar(ResNet):
    """timm's ResNet for small images. Every argument but `stem_width` is timm's; `channels` gives a width per stage.

    Args:
        stem_width: Output channels of the 3x3 stem.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        layers: tuple[int, ...] = (3, 3, 3),
        channels: tuple[int, ...] = (16, 32, 64),
        stem_width: int = 16,
        in_chans: int = 3,
        output_stride: int = 32,
        zero_init_last: bool = True,
        **kwargs: Any,
    ) -> None:
        if len(layers) != len(channels):
            raise ValueError(f"layers={tuple(layers)} and channels={tuple(channels)} need one number a stage each")
        # timm's plain stem is 64 wide, its deep one twice `stem_width`: ask for that and put the 3x3 in its place.
        super().__init__(
            block,  # type: ignore[arg-type]  # timm writes the class where it takes the type
            layers,
            channels=channels,
            stem_type="deep",
            stem_width=stem_width // 2,
            in_chans=in_chans,
            output_stride=min(4 * output_stride, 32),  # timm counts the stem's 4, and takes 8, 16 and 32
            zero_init_last=zero_init_last,
            **kwargs,
        )
        self.conv1 = nn.Conv2d(  # type: ignore[assignment]  # a deep stem is a Sequential
            in_chans,
            stem_width,
            kernel_size=3,
            padding=1,
            bias=False,
            device=kwargs.get("device"),
            dtype=kwargs.get("dtype"),
        )
        self.maxpool = nn.Identity()  # type: ignore[assignment]
        self.stages = [f"layer{i + 1}" for i in range(len(layers))]
        for info in self.feature_info[1:]:
            info["reduction"] = int(info["reduction"]) // 4  # type: ignore[call-overload]  # timm: dict of object
        self.feature_info[0]["reduction"] = 1
        self.init_weights(zero_init_last=zero_init_last)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images NxCxHxW to the last stage's features."""
        return self.forward_intermediates(x, indices=[])[0]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's: (last features, [features of the stem and stages in `indices`])."""
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        take, last = feature_take_indices(len(self.stages) + 1, indices) if indices != [] else ([], len(self.stages))
        intermediates = []
        x = self.act1(self.bn1(self.conv1(x)))
        if 0 in take:
            intermediates.append(x)
        x = self.maxpool(x)
        for i, name in enumerate(self.stages[:last] if stop_early else self.stages, start=1):
            stage = getattr(self, name)
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, as timm's; returns the indices kept."""
        take, last = feature_take_indices(len(self.stages) + 1, indices)
        pruned = self.stages[last:]
        for name in pruned:
            delattr(self, name)
        self.stages = self.stages[:last]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        # The CIFAR family is trained on pixels in [0, 1] as they are.
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "resnet20_cifar.untrained": _cfg(),
        "resnet18_cifar.untrained": _cfg(pool_size=(4, 4)),
        "resnet50_cifar.untrained": _cfg(pool_size=(4, 4)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ResNetCifar:
    num_stages = len(kwargs["layers"])
    feature_cfg = dict(out_indices=tuple(range(num_stages + 1)))
    return build_model_with_cfg(ResNetCifar, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """CIFAR ResNet-20, 0.27 M parameters."""
    args = dict(block=BasicBlock, layers=(3, 3, 3), channels=(16, 32, 64), stem_width=16)
    return _create("resnet20_cifar", pretrained, **{**args, **kwargs})


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """CIFAR ResNet-18, 11.2 M parameters."""
    args = dict(block=BasicBlock, layers=(2, 2, 2, 2), channels=(64, 128, 256, 512), stem_width=64)
    return _create("resnet18_cifar", pretrained, **{**args, **kwargs})


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """CIFAR ResNet-50, 23.5 M parameters."""
    args = dict(block=Bottleneck, layers=(3, 4, 6, 3), channels=(64, 128, 256, 512), stem_width=64)
    return _create("resnet50_cifar", pretrained, **{**args, **kwargs})
