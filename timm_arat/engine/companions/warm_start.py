"""Perturbations that outlive their epoch: where a warm-started attack begins (ATTA, arXiv:1912.11969, Sec. 4)."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import why_no_grid
from ...methods import Method, method_class, method_name
from ..config import TrainConfig
from ._base import Batch, Companion

if TYPE_CHECKING:
    from ..session import Session


class WarmStart(Companion):
    """The perturbation of every training image, in the place that its pixels have before augmentation.

    Epoch e reads `folder`/perturbations-e.bin and writes perturbations-(e+1).bin; only these two exist. So nothing that
    a resume in the middle of an epoch reads was overwritten. Each holds float16 [images, C, H W], rounded to 2^-11 of a
    value, and NaN for a pixel that no crop has shown: that one, like padding, starts as it does without a warm start.

    The processes share the files by mapping them into memory, which several nodes cannot.

    Raises:
        ValueError: there are several nodes.
    """

    needs_places = True

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.accelerator.num_processes))
        if local < self.accelerator.num_processes:
            raise ValueError(
                f"warm_start: {self.accelerator.num_processes} processes on nodes of {local} each cannot share the "
                "perturbations, which are mapped into memory; train on one node, or leave warm_start out"
            )
        self.folder, images = session.folder, session.data.train
        assert images is not None
        channels, height, width = images.plain()[0][0].shape
        self.epoch = -1
        self.shape = (len(images), channels, height * width)
        self.size = 2 * len(images) * channels * height * width  # bytes of one file

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        return config.warm_start and method.attacks

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        if not config.warm_start:
            return
        name = method_name(config.method)
        if not method_class(name).attacks:
            raise ValueError(f"warm_start: {name} has no attack to start; leave it out")
        if any(getattr(method, "noisy_clean", False) for method in (config.method, config.twin)):
            raise ValueError("warm_start: noisy_clean attacks from the centre of its ball; leave one of the two out")
        if any(getattr(method, "views", 0) for method in (config.method, config.twin)):
            raise ValueError("warm_start: dajat's views have no place in the image to start from; set method.views=0")
        if reason := why_no_grid(config.data.transform, config.data.mixup, config.data.crop):
            raise ValueError(f"warm_start: {reason}; or leave warm_start out")

    def begin(self, epoch: int, resumed: bool) -> None:
        """Make ready for epoch `epoch`, from 0, or for the rest of it; on every process.

        Raises:
            ValueError: the disk has no room for the files, or what the epoch before left is gone.
        """
        self.accelerator.wait_for_everyone()  # until all have left the epoch before
        if epoch == 0 and not resumed:
            self._check_room()
            self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and not resumed:
            self._advance(epoch)
        self.accelerator.wait_for_everyone()
        self.before, self.after = self._open(epoch), self._open(epoch + 1)
        self.epoch = epoch

    def skip_to(self, epoch: int) -> None:
        """Let `epoch` begin where the one that began last ends, on the main process: to try single epochs."""
        if self.epoch >= 0:
            self._path(self.epoch + 1).rename(self._path(epoch))

    def start(self, batch: Batch) -> Tensor:
        """What is stored for these images: in their shape, not projected, NaN where nothing is known."""
        assert batch.numbers is not None and batch.grid is not None
        x = batch.x
        padded = F.pad(self.before[batch.numbers.cpu()].to(x.device), (1, 0), value=torch.nan)
        return x + padded.gather(2, _expanded(batch.grid, x.shape[1])).view_as(x)

    def around_step(self, batch: Batch, x: Tensor, x_adv: Tensor) -> AbstractContextManager[Any]:
        """Store what the method trains on, less the image: what the attack found, or ARREST's noise in its place."""
        assert batch.numbers is not None and batch.grid is not None
        self.keep(x_adv - x, batch.numbers.cpu(), batch.grid)
        return nullcontext()

    def keep(self, delta: Tensor, index: Tensor, grid: Tensor) -> None:
        """Store the perturbations `delta` (NxCxHxW) of augmented images; pixels outside the crop stay as they were."""
        padded = F.pad(self.before[index].to(delta.device), (1, 0))
        padded.scatter_(2, _expanded(grid, delta.shape[1]), delta.flatten(2).to(padded.dtype))
        self.after[index] = padded[:, :, 1:].cpu()

    def before_save(self) -> None:
        """To the disk; before a checkpoint, which counts on what this epoch has written."""
        with self._path(self.epoch + 1).open("rb") as file:
            os.fsync(file.fileno())

    def end(self) -> None:
        """Give the room back, after the last epoch; on every process."""
        self.before = self.after = torch.empty(0)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for path in self._paths():
                path.unlink()

    def _path(self, epoch: int) -> Path:
        """What epoch `epoch` reads."""
        return self.folder / f"perturbations-{epoch}.bin"

    def _paths(self) -> list[Path]:
        return list(self.folder.glob("perturbations-*.bin"))

    def _advance(self, epoch: int) -> None:
        """Make what epoch `epoch` writes, which starts as what it reads: an epoch skips a last, partial batch."""
        old, new = self._path(epoch), self._path(epoch + 1)
        if epoch == 0:
            for path in self._paths():
                path.unlink()
            self._create(old)
        if not new.exists():
            spare = self._path(epoch - 1)
            spare.rename(new) if spare.exists() else self._create(new)
        if old.exists():
            self._open(epoch + 1).copy_(self._open(epoch))

    def _create(self, path: Path) -> None:
        """A file of NaN, written in full: on a full disk, a map into a hole is a bus error."""
        image = b"\xff" * (self.size // self.shape[0])
        with path.open("wb") as file:
            for _ in range(self.shape[0]):
                file.write(image)

    def _open(self, epoch: int) -> Tensor:
        path = self._path(epoch)
        if not path.exists() or path.stat().st_size != self.size:
            raise ValueError(
                f"warm_start: {path} is gone or of other images, which happens where an older checkpoint or a finished "
                "run is resumed: start afresh with another --output"
            )
        return torch.from_file(str(path), shared=True, size=self.size // 2, dtype=torch.float16).view(self.shape)

    def _check_room(self) -> None:
        held = sum(path.stat().st_size for path in self._paths())
        free = shutil.disk_usage(self.folder).free + held
        if free < 2 * self.size:
            raise ValueError(
                f"warm_start keeps {2 * self.size / 1e9:.3g} GB of perturbations in {self.folder}, where "
                f"{free / 1e9:.3g} GB are free: free some, name an --output on another disk, or leave warm_start out"
            )


def _expanded(grid: Tensor, channels: int) -> Tensor:
    """Nx1xHxW to NxCxHW of int64, the form of an index."""
    return grid.flatten(2).long().expand(-1, channels, -1)
