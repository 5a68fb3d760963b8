"""What a run tells: a progress bar for a person, lines for a pipe, rows for summary.jsonl and the trackers."""

import math
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..files import append_row, read_rows


class Log:
    """Speaks on the main process only; collects terms on the device and fetches them every `every` steps."""

    def __init__(self, accelerator: Accelerator, folder: Path, every: int) -> None:
        self.accelerator = accelerator
        self.summary = folder / "summary.jsonl"
        self.every = every
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.images = 0
        self.before = 0.0  # seconds of this epoch before a resume
        self.started = time.monotonic()
        self.bar: tqdm | None = None

    def say(self, text: str) -> None:
        """One line, above the progress bar where there is one."""
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stdout) if self.bar is not None else print(text, flush=True)

    def begin(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Open the bar of epoch `epoch` (from 0), `done` of whose `steps` were done before a resume."""
        if not done:
            self.sums, self.count, self.images, self.before = {}, 0, 0, 0.0
        self.started = time.monotonic()
        if self.accelerator.is_main_process:
            width = len(str(epochs))
            self.bar = tqdm(
                total=steps,
                initial=done,
                desc=f"epoch {epoch + 1:{width}d}/{epochs}",
                unit="step",
                disable=not sys.stderr.isatty(),
                leave=False,
                dynamic_ncols=True,
            )

    def step(self, terms: dict[str, Tensor], images: int, lr: float, step: int) -> None:
        """Take in the terms of one step (scalars; 'output' is left out); `images` over all processes."""
        for name, value in terms.items():
            if name != "output":
                self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()
        self.count += 1
        self.images += images
        if self.bar is not None:
            self.bar.update()
        if step % self.every == 0:
            now = {name: float(value.detach()) for name, value in terms.items() if name != "output"}
            if not math.isfinite(now["loss"]):
                raise diverged(f"the loss is {now['loss']} at step {step} ({_terms(now)})")
            if self.bar is not None:
                self.bar.set_postfix_str(f"{self.images / self._seconds():.0f} images/s, {_terms(now)}", refresh=False)
            self.accelerator.log({f"train/{name}": value for name, value in now.items()} | {"train/lr": lr}, step=step)

    def end(self, row: dict[str, Any], epochs: int, step: int) -> None:
        """Close the epoch: its mean terms and `row` go to summary.jsonl, the trackers and a line for a person."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        means = {name: float(total) / max(1, self.count) for name, total in self.sums.items()}
        self.accelerator.log(
            {f"epoch/{name}": value for name, value in row.items() if isinstance(value, float)}, step=step
        )
        if self.accelerator.is_main_process:
            full = {**row, **means}
            append_row(self.summary, full)
        width = len(str(epochs))
        shown = ", ".join(f"{k.replace('_', ' ')} {100 * v:.1f} %" for k, v in row.items() if k.startswith("val_"))
        self.say(
            f"epoch {row['epoch']:{width}d}/{epochs}  {row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s, "
            f"lr {row['lr']:.3g}  {_terms(means)}" + (f"  {shown}" if shown else "")
        )

    def rows(self) -> list[dict[str, Any]]:
        """What summary.jsonl holds: one row an epoch, the newest where a resume repeated one."""
        return read_rows(self.summary) if self.summary.exists() else []

    def speed(self) -> tuple[float, float]:
        """Seconds of this epoch so far, and images a second over all processes."""
        return self._seconds(), self.images / self._seconds()

    def is_finite(self) -> bool:
        """Whether every loss of this epoch was a finite number."""
        return "loss" not in self.sums or math.isfinite(float(self.sums["loss"]))

    def state_dict(self) -> dict[str, Any]:
        """What the row of an epoch that is resumed in its middle needs of the part before."""
        return {"sums": self.sums, "count": self.count, "images": self.images, "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.sums = {name: value.to(self.accelerator.device) for name, value in state["sums"].items()}
        self.count, self.images, self.before = state["count"], state["images"], state["seconds"]

    def _seconds(self) -> float:
        return max(1e-9, self.before + time.monotonic() - self.started)


def diverged(what: str) -> ValueError:
    """The error of a training that ran away: `what` is no number any more."""
    return ValueError(
        f"{what}: lower optimizer.lr, set optimizer.clip_grad, or train without fp16; nothing was saved since, and the "
        "last checkpoint is intact"
    )


def _terms(terms: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in terms.items())
