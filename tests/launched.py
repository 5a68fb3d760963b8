"""Run by `accelerate launch` in test_launch.py: train for real and write down what each process saw.

launched.py FOLDER PROCESSES [--option value ...]
"""

import json
import sys
from pathlib import Path

import torch

from timm_arat.config import read
from timm_arat.engine import loop as loop_module
from timm_arat.engine.companions.guard import Guard
from timm_arat.engine.companions.warm_start import WarmStart
from timm_arat.engine.config import TrainConfig
from timm_arat.engine.recipe import VARIANTS
from timm_arat.engine.train import train

folder, processes, *options = sys.argv[1:]
seen = {}
finish_epoch = loop_module.Loop._finish


def watch(self, epoch):
    """Before the epoch's end averages them, running statistics differ; gradients have made parameters agree."""
    assert self.accelerator.num_processes == int(processes), "the launcher started another number of processes"
    finish_epoch(self, epoch)
    if self.folder.name == "twin":
        return  # which only has to come through
    seen["parameters"] = torch.cat([p.detach().double().flatten() for p in self.method.parameters()])
    seen["buffers"] = torch.cat([b.double().flatten() for n, b in self.method.named_buffers() if "running" in n])
    seen["balance"] = float(getattr(self.method, "balance", 0))
    seen["threads"] = torch.get_num_threads()
    for companion in self.companions:
        match companion:
            case WarmStart():
                seen["without_start"] = float(companion.before.isnan().double().mean())
            case Guard():
                seen["guard"] = [companion.best, companion.last, companion.snapshot["step"]]
    seen["rank"] = self.accelerator.process_index
    seen["noise"] = float(torch.rand(()))


loop_module.Loop._finish = watch
train(read(TrainConfig, options, variants=VARIANTS, default="digits", prog="launched.py", description=""))
plain = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in seen.items()}
Path(folder, f"seen-{seen['rank']}.json").write_text(json.dumps(plain))
