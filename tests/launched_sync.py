"""Run by `accelerate launch` in test_two_machines.py: train with SyncBatchNorm on CPUs, where torch has none.

Its forward pass is emulated by sums over all images of all processes, with torch's own gradients through the reduction;
everything else (which norms are converted and split, which branch counts what, DDP) is the real thing.
"""

import sys

import torch
import torch.distributed.nn.functional as collective
from torch import Tensor, nn

from timm_arat.config import read
from timm_arat.engine.config import TrainConfig
from timm_arat.engine.recipe import VARIANTS
from timm_arat.engine.train import train


def forward(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    if not self.training:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
    each = (0, *range(2, x.ndim))
    own = torch.stack([x.sum(each), (x * x).sum(each)]).double()
    count = x.numel() // x.shape[1] * torch.distributed.get_world_size()
    mean, square = collective.all_reduce(own) / count
    var = square - mean**2
    with torch.no_grad():
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.float(), self.momentum)
        self.running_var.lerp_((var * count / (count - 1)).float(), self.momentum)
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = self.weight / (var.float() + self.eps).sqrt()
    return (x - mean.float().view(shape)) * scale.view(shape) + self.bias.view(shape)


nn.SyncBatchNorm.forward = forward
nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None  # it refuses CPUs
train(read(TrainConfig, sys.argv[1:], variants=VARIANTS, default="digits", prog="launched_sync.py", description=""))
