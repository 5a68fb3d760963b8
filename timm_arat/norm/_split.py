"""The split norm: one module object, two sets of parameters and statistics, three modes."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import _shared
from ._replay import refuse_unbound_replay

Branch = Literal["main", "aux", "both"]
BRANCHES: tuple[str, ...] = get_args(Branch)


class SplitNorm(nn.Module):
    """First base of every class in the table; the second is the norm class that was swapped.

    The module keeps its own parameters and buffers as `main`; `aux` is a whole norm under `aux_bn.0`, the key that
    timm's SplitBatchNorm2d uses (AdvProp, arXiv:1911.09665; ours also switches in eval mode and needs no 4-D input).
    """

    original: ClassVar[type[nn.Module]]  # the class that merge gives back
    bare: ClassVar[type[nn.Module]]  # its normalisation alone, without timm's `act` and `drop`; the class of aux
    act: nn.Module  # timm's norm-and-act classes only, like drop
    drop: nn.Module
    aux_bn: nn.ModuleList
    branch: Branch  # neither buffer nor parameter: a checkpoint holds no mode
    share: _shared.Share | None  # what of main serves aux, too

    def forward(self, x: Tensor) -> Tensor:
        """x: NxCx..., whose first half is main's and second half aux's when `branch` is 'both'; same shape out."""
        refuse_unbound_replay()
        aux = self.aux_bn[0]
        if self.branch == "both":
            if x.shape[0] % 2:
                raise ValueError(
                    f"'both' halves the batch, but {x.shape[0]} is odd: pass torch.cat([x_adv, x]) with as many "
                    f"adversarial images as clean ones"
                )
        halves = x.chunk(2) if self.branch == "both" else (x,)
        self._check_count(halves[0])
        if self.share is not None:
            assert isinstance(self, _BatchNorm) and isinstance(aux, _BatchNorm)  # as conversion has checked
            y = _shared.forward(self, aux, self.share, self.branch, x)
        elif self.branch == "both":
            y = torch.cat([self.bare.forward(self, halves[0]), aux(halves[1])])
        else:
            y = self.bare.forward(self, x) if self.branch == "main" else aux(x)
        # act and drop are shared: run once, over both halves.
        return y if self.bare is self.original else self.act(self.drop(y))

    def _check_count(self, x: Tensor) -> None:
        # SyncBatchNorm counts over all processes.
        if self.training and isinstance(self, _BatchNorm) and not isinstance(self, nn.SyncBatchNorm):
            if x.numel() <= x.shape[1]:
                raise ValueError(
                    f"a BatchNorm in training mode got {tuple(x.shape)}, one value per channel, and has no variance "
                    f"to compute: give each branch at least 2 images (drop_last=True in the loader), or call eval()"
                )
