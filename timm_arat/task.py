"""Train by a method of ours from timm's own training loop: a task with the interface of `timm.task`.

model = timm.create_model("resnet18", num_classes=10)
task = RobustTask(timm_arat.ARAT(model, attack=timm_arat.PGD(eps=8 / 255, steps=2)))
result = task(input, target)     # normalised images, as timm's loaders give them; result["loss"].backward()
"""

from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from .methods import Method

# What half precision may leave outside [0, 1] of normalised images.
ROUNDING = 0.02


class RobustTask(TrainingTask):
    """A method as timm's training loop wants it: images come normalised, the model to evaluate is the plain backbone.

    The loop validates and saves `method.model`; predictors and the like are the task's own state beside it. Where a
    method splits the norms, a checkpoint has the second branch under `aux_bn`, so it loads into a model that has one:

        model = timm_arat.convert_split_norm(timm.create_model("resnet18", num_classes=10))
        timm.models.load_checkpoint(model, "model_best.pth.tar")
        timm_arat.merge_split_norm(model)  # a plain timm model

    A method that wants the clean training accuracy before each epoch gets it by `method.set_clean_accuracy`, which
    timm's loop does not call: without it ARAT weighs both of its cross-entropies by a half.

    Args:
        method: A training method around a timm model.
        mean, std: By which the loader normalises, a value for each channel; those of the model's pretrained_cfg, timm's
            default, if not given.
        device, dtype, verbose: As timm's tasks take them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        method: Method,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module: nn.Module = method
        own = method.network.mean, method.network.std
        for name, given, default in (("mean", mean, own[0]), ("std", std, own[1])):
            value = default if given is None else torch.tensor(given).view(1, -1, 1, 1)
            self.register_buffer(name, value.clone(), persistent=False)
        self.to(device=device, dtype=dtype)

    @property
    def method(self) -> Method:
        """The method without what timm has wrapped it in."""
        found = unwrap_model(self.trainable_module)
        assert isinstance(found, Method)
        return found

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Normalised images NxCxHxW and classes N (or mixed labels NxK) to {'loss', 'output', terms for the log}.

        Raises:
            ValueError: images that were normalised otherwise, or as `Method.perturb`.
        """
        x = input * self.std + self.mean
        if (outside := float(torch.maximum(-x, x - 1).amax())) > ROUNDING:
            raise ValueError(
                f"the images are up to {outside:.3g} outside [0, 1] after std and mean are taken back: give RobustTask "
                "the loader's own mean= and std=, and no transform behind its normalisation (RandomErasing's noise)"
            )
        x = x.clamp(0, 1)
        x, x_adv = self.method.perturb(x, target)
        result: dict[str, Tensor] = self.trainable_module(x, target, x_adv)
        return result

    def train(self, mode: bool = True) -> "RobustTask":
        """As torch's; timm's loop calls it before each epoch, and so tells the method of it."""
        super().train(mode)
        if mode:
            self.method.begin_epoch()
        return self

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> "RobustTask":
        """Wrap the method for distributed training; the attack runs on what is inside."""
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def compile(  # type: ignore[override]  # timm's tasks return what they compiled, torch's modules nothing
        self, backend: str = "inductor", mode: str | None = None, **kwargs: Any
    ) -> nn.Module:
        """Compile the backbone in place, as torch's `nn.Module.compile`."""
        self.method.model.compile(backend=backend, mode=mode, **kwargs)
        return self.method.model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The backbone as timm built it, which takes normalised images."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        return None if module is None else unwrap_model(module).model

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What of the method is not in the backbone, such as predictors."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        state = {} if module is None else unwrap_model(module).state_dict()
        return {name: value for name, value in state.items() if not name.startswith("network.")}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Take back what `get_task_state` gave."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            return
        found = unwrap_model(module).load_state_dict(state or {}, strict=False)
        missing = [name for name in found.missing_keys if not name.startswith("network.")]
        if strict and (missing or found.unexpected_keys):
            raise ValueError(
                f"the checkpoint's task state lacks {missing} and has {found.unexpected_keys} too much: it is of "
                "another method, or of the same with other settings"
            )
