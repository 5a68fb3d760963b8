"""Run by `accelerate launch` in test_two_machines.py: train, and fail in one process's third step."""

import sys

from timm_arat.config import read
from timm_arat.engine.companions import Companion
from timm_arat.engine.config import TrainConfig
from timm_arat.engine.recipe import VARIANTS
from timm_arat.engine.train import train


class Failing(Companion):
    """Raises on the second process alone, while the first waits for its gradients."""

    @classmethod
    def wanted(cls, config, method):
        return True

    def after_update(self, update, epoch):
        if self.accelerator.process_index == 1 and update == 3:
            raise RuntimeError("this process alone has failed")


options = sys.argv[1:]
train(
    read(TrainConfig, options, variants=VARIANTS, default="digits", prog="launched_failing.py", description=""),
    [Failing],
)
