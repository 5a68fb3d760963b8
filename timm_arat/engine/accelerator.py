"""The accelerator of a run, and the CPU threads of its processes."""

import os
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    parse_flag_from_env,
)

from ..precision import resolve_precision
from .config import TrainConfig
from .costs import cores


def start(config: TrainConfig, folder: Path) -> Accelerator:
    """The accelerator, with the CPU threads of this process set where there is no other device."""
    # torch 2.15 has another name for it, which torch 2.6 does not know.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    # Of weights in channels_last, whose gradients are copied into the buckets: a line a process, and nothing to change.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    accelerator = Accelerator(
        mixed_precision=resolve_precision(config.mixed_precision, _device()),
        gradient_accumulation_steps=config.optimizer.accumulate,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers")),
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=config.seed, even_batches=False, non_blocking=True
        ),
        # The method runs one forward a step, and its norms' statistics are averaged once an epoch.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        step_scheduler_with_optimizer=False,
    )
    check_engine(accelerator.distributed_type)
    # accelerate leaves out a tracker whose package is missing, without a word.
    working = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing := set(config.trackers) - working:
        raise ValueError(f"trackers: {', '.join(sorted(missing))} is not installed: pip install it, or leave it out")
    if accelerator.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        threads = config.threads or max(1, cores() // local)
        torch.set_num_threads(threads)  # the launcher sets OMP_NUM_THREADS=1
    return accelerator


def process() -> PartialState:
    """This process among those of its launch, before there is an accelerator; on CPUs where the launcher said so."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def check_launch() -> None:
    """ValueError where the launcher began several processes of which accelerate, finding no GPU, takes each for itself.

    They would train apart from each other, and all the same.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and process().num_processes == 1:
        raise ValueError(
            f"the launcher began {world} processes, and there is no GPU for them to share: on CPUs say "
            f"`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {world} ...`, or leave "
            "--multi_gpu out for one process"
        )


def unscaled(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """The precision of a backward pass that is none of the optimizer's: fp16 would underflow without its loss scale."""
    if accelerator.mixed_precision == "fp16":
        return torch.autocast(accelerator.device.type, enabled=False)
    found: AbstractContextManager[Any] = accelerator.autocast()
    return found


def check_engine(kind: DistributedType) -> None:
    """ValueError for engines that share out the weights of a network: attacks call it apart from its wrapper."""
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA):
        raise ValueError(
            f"accelerate was told to train by {kind.value}, which is not supported: the attack on a step's images "
            "goes through the network itself, whose weights a wrapper of that kind keeps elsewhere. Launch with "
            "--multi_gpu; for memory there is model.checkpointing"
        )


def _device() -> torch.device:
    """What the accelerator will run on: it takes the precision when it is made, and only then says where it is."""
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def where(accelerator: Accelerator) -> str:
    """Where a training runs, for the first line of its log."""
    processes = f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''}"
    threads = f" of {torch.get_num_threads()} threads" if accelerator.device.type == "cpu" else ""
    return f"{processes}{threads} on {accelerator.device.type}, mixed precision {accelerator.mixed_precision}"
