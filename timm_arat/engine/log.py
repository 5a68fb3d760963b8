"""What a run tells: a progress bar, lines for a pipe and for train.log, rows for summary.jsonl and the trackers."""

import math
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..files import append_row, read_rows

LINE_SECONDS = 60  # between two lines within an epoch, where there is no bar to look at
SHORT = ("acc_", "balance")  # terms that the line of an epoch leaves out, so that it fits 120 columns; rows have them


class Log:
    """Speaks on the main process only; collects terms on the device and fetches them every `every` steps."""

    def __init__(self, accelerator: Accelerator, folder: Path, every: int) -> None:
        self.accelerator = accelerator
        self.summary, self.lines = folder / "summary.jsonl", folder / "train.log"
        self.every = every
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.images = 0
        self.before = 0.0  # seconds of this epoch before a resume
        self.started = self.told = time.monotonic()
        self.title, self.steps, self.first, self.done = (
            "",
            0,
            0,
            0,
        )  # of the epoch: name, steps, first and done of these
        self.bar: tqdm | None = None

    def say(self, text: str) -> None:
        """One line, above the progress bar where there is one, and into train.log."""
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stdout) if self.bar is not None else print(text, flush=True)
            with self.lines.open("a") as file:
                file.write(text + "\n")

    def begin(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Open the bar of epoch `epoch` (from 0), `done` of whose `steps` were done before a resume."""
        if not done:
            self.sums, self.count, self.images, self.before = {}, 0, 0, 0.0
        self.started = self.told = time.monotonic()
        self.title = f"epoch {epoch + 1:{len(str(epochs))}d}/{epochs}"
        self.steps, self.first, self.done = steps, done, done
        if self.accelerator.is_main_process:
            shown = {"unit": "step", "disable": not sys.stderr.isatty(), "leave": False, "dynamic_ncols": True}
            self.bar = tqdm(total=steps, initial=done, desc=self.title, **shown)

    def step(self, terms: dict[str, Tensor], images: int, lr: float, step: int) -> None:
        """Take in the terms of one step (scalars; 'output' is left out); `images` over all processes."""
        for name, value in terms.items():
            if name != "output":
                self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()
        self.count += 1
        self.images += images
        self.done += 1
        if self.bar is not None:
            self.bar.update()
            if self.bar.disable and time.monotonic() - self.told > LINE_SECONDS:
                self._tell()
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
        full = {**row, **means}
        numbers = {f"epoch/{name}": value for name, value in full.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=step)
        if self.accelerator.is_main_process:
            append_row(self.summary, full)
        terms = {name: value for name, value in means.items() if not name.startswith(SHORT)}
        shown = ", ".join(f"{k[4:].replace('_', ' ')} {100 * v:.1f}" for k, v in row.items() if k.startswith("val_"))
        self.say(
            f"{self.title}  {row['seconds']:.0f} s  {_terms(terms)}" + (f"  validation {shown} %" if shown else "")
        )

    def _tell(self) -> None:
        """A line within an epoch, with the time that is left of it."""
        self.told = time.monotonic()
        left = (self.told - self.started) / (self.done - self.first) * (self.steps - self.done)
        self.say(f"{self.title}  step {self.done}/{self.steps}, {left / 60:.0f} min left of the epoch")

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
        f"{what}: lower optimizer.lr, set optimizer.clip_grad, or train without fp16; nothing was saved of it; "
        "a checkpoint of before, if there is one, is intact"
    )


def _terms(terms: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in terms.items())
