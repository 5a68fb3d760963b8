"""Wide ResNets for CIFAR (Zagoruyko & Komodakis, arXiv:1605.07146): timm's pre-activation ResNet with a 3x3 stem.

`wide_resnet34_10_cifar` is the WRN-34-10 of TRADES and of most adversarial training since: 46,160,474 parameters with
10 classes, TRADES' own count without the `sub_block1` that its forward pass never runs. WRN-d-k has `layers` of
(d - 4) / 6 blocks and `channels` of 16k, 32k, 64k: WRN-16-4 is `layers=(2, 2, 2), channels=(64, 128, 256)`.
"""

from collections import OrderedDict
from typing import Any

from timm.layers import BatchNormAct2d, ClassifierHead, create_conv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from .resnet_cifar import _cfg


class WideResNetCifar(ResNetV2):
    """timm's ResNetV2 of basic blocks for small images: one 3x3 convolution as the stem, no pooling, a linear head.

    Every argument is timm's; `channels` gives a width per stage, in multiples of 8.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (5, 5, 5),
        channels: tuple[int, ...] = (160, 320, 640),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        stem_chs: int = 16,
        norm_layer: Any = BatchNormAct2d,
        drop_rate: float = 0.0,
        zero_init_last: bool = False,
        **kwargs: Any,
    ) -> None:
        if len(layers) != len(channels):
            raise ValueError(f"layers={tuple(layers)} and channels={tuple(channels)} need one number a stage each")
        super().__init__(
            layers,  # type: ignore[arg-type]  # timm: a list, of which it asks the length and the items
            channels=channels,
            num_classes=0,
            in_chans=in_chans,
            output_stride=4 * output_stride,  # timm counts the stem's 4
            stem_chs=stem_chs,
            stem_type="",
            preact=True,
            basic=True,
            bottle_ratio=1.0,
            norm_layer=norm_layer,
            conv_layer=create_conv2d,
            drop_rate=drop_rate,
            zero_init_last=zero_init_last,
            **kwargs,
        )
        dd: dict[str, Any] = dict(device=kwargs.get("device"), dtype=kwargs.get("dtype"))
        width = self.feature_info[0]["num_chs"]
        self.stem = nn.Sequential(OrderedDict(conv=create_conv2d(in_chans, width, 3, **dd)))
        for info in self.feature_info[1:]:
            info["reduction"] = int(info["reduction"]) // 4  # type: ignore[call-overload]  # timm: dict of object
        self.feature_info[0]["reduction"] = 1
        self.num_classes = num_classes
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self.init_weights(zero_init_last=zero_init_last)

    # timm's two methods below count five features, whatever the number of stages: give them absolute indices.

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As timm's: (last features, [features of the stem and stages in `indices`])."""
        take, _ = feature_take_indices(len(self.stages) + 1, indices)
        return super().forward_intermediates(x, take, *args, **kwargs)

    def prune_intermediate_layers(self, indices: int | list[int] = 1, *args: Any, **kwargs: Any) -> list[int]:
        """Drop the stages after the last of `indices`, as timm's; returns the indices kept."""
        take, _ = feature_take_indices(len(self.stages) + 1, indices)
        return super().prune_intermediate_layers(take, *args, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "wide_resnet34_10_cifar.untrained": _cfg(first_conv="stem.conv", classifier="head.fc"),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> WideResNetCifar:
    feature_cfg = dict(out_indices=tuple(range(len(kwargs["layers"]) + 1)), flatten_sequential=True)
    return build_model_with_cfg(WideResNetCifar, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def wide_resnet34_10_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNetCifar:
    """WRN-34-10, 46.2 M parameters."""
    args = dict(layers=(5, 5, 5), channels=(160, 320, 640))
    return _create("wide_resnet34_10_cifar", pretrained, **{**args, **kwargs})
