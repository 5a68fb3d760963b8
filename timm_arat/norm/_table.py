"""The norm classes that can be split. A new one is one row; a class that is not here is never guessed at."""

from timm import layers
from timm.layers import register_notrace_module
from timm.models import metaformer
from torch import nn

from ._split import SplitNorm

# (class, its normalisation without act and drop)
_ROWS: list[tuple[type[nn.Module], type[nn.Module]]] = [
    (nn.BatchNorm1d, nn.BatchNorm1d),
    (nn.BatchNorm2d, nn.BatchNorm2d),
    (nn.BatchNorm3d, nn.BatchNorm3d),
    (nn.SyncBatchNorm, nn.SyncBatchNorm),
    (layers.BatchNormAct2d, nn.BatchNorm2d),
    (layers.SyncBatchNormAct, nn.SyncBatchNorm),
    # Affine parameters only: these norms look at one image at a time and keep no statistics.
    (nn.LayerNorm, nn.LayerNorm),
    (nn.GroupNorm, nn.GroupNorm),
    (nn.RMSNorm, nn.RMSNorm),
    (layers.LayerNorm, layers.LayerNorm),
    (layers.LayerNormFp32, layers.LayerNormFp32),
    (layers.LayerNorm2d, layers.LayerNorm2d),
    (layers.LayerNorm2dFp32, layers.LayerNorm2dFp32),
    (layers.GroupNorm, layers.GroupNorm),
    (layers.GroupNorm1, layers.GroupNorm1),
    (layers.RmsNorm, layers.RmsNorm),
    (layers.RmsNormFp32, layers.RmsNormFp32),
    (layers.RmsNorm2d, layers.RmsNorm2d),
    (layers.RmsNorm2dFp32, layers.RmsNorm2dFp32),
    (layers.SimpleNorm, layers.SimpleNorm),
    (layers.SimpleNormFp32, layers.SimpleNormFp32),
    (layers.SimpleNorm2d, layers.SimpleNorm2d),
    (layers.SimpleNorm2dFp32, layers.SimpleNorm2dFp32),
    (layers.LayerNormAct, layers.LayerNorm),
    (layers.LayerNormActFp32, layers.LayerNormFp32),
    (layers.LayerNormAct2d, layers.LayerNorm2d),
    (layers.LayerNormAct2dFp32, layers.LayerNorm2dFp32),
    (layers.GroupNormAct, layers.GroupNorm),
    (layers.GroupNorm1Act, layers.GroupNorm1),
    (layers.RmsNormAct, layers.RmsNorm),
    (layers.RmsNormActFp32, layers.RmsNormFp32),
    (layers.RmsNormAct2d, layers.RmsNorm2d),
    (layers.RmsNormAct2dFp32, layers.RmsNorm2dFp32),
    (metaformer.LayerNormNoBias, metaformer.LayerNormNoBias),
    (metaformer.LayerNorm2dNoBias, metaformer.LayerNorm2dNoBias),
    (metaformer.GroupNorm1NoBias, metaformer.GroupNorm1NoBias),
]


def _split_class(original: type[nn.Module], bare: type[nn.Module]) -> type[SplitNorm]:
    # Both libraries have a LayerNorm and a GroupNorm.
    name = ("Split" if original.__module__.startswith("torch.") else "SplitTimm") + original.__name__
    members = {"original": original, "bare": bare, "__module__": __name__, "__doc__": f"{original.__name__}, split."}
    split = type(name, (SplitNorm, original), members)
    globals()[name] = split  # pickle looks classes up by module and name
    return register_notrace_module(split)  # torch.fx takes it as a leaf, as it takes the original


SPLIT_CLASSES: dict[type[nn.Module], type[SplitNorm]] = {row[0]: _split_class(*row) for row in _ROWS}
