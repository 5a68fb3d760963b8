"""The epochs: attack and step, measure, log, checkpoint, in that order and in one place."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks import PGD
from ..compiling import compiled_steps
from ..methods import Method
from . import checkpoint, weights
from .batches import stack
from .config import TrainConfig
from .log import Log
from .measure import average_statistics, clean_accuracy, robust_accuracy
from .prepare import Session
from .signals import Signals


class Interrupted(Exception):
    """Training was stopped by a signal; the run's folder, which is the message, resumes."""


class Loop:
    """Trains `session` from where it stands to the last epoch; `folder` gets checkpoints, best and last weights."""

    def __init__(self, config: TrainConfig, session: Session, folder: Path, log: Log) -> None:
        self.config, self.session, self.folder, self.log = config, session, folder, log
        self.accelerator, self.method = session.accelerator, session.method
        self.steps = len(session.loader)
        self.updates = -(-self.steps // config.optimizer.accumulate)  # optimizer steps an epoch
        self.saved = time.monotonic()
        self.best = -math.inf

    def run(self) -> None:
        """Train.

        Raises:
            Interrupted: SIGINT or SIGTERM came, and a checkpoint was written.
            ValueError: the loss is not finite, or the checkpoint to resume from cannot be read.
        """
        first, done = 0, 0
        if self.config.resume and (newest := checkpoint.newest(self.folder / "checkpoints")):
            first, done = checkpoint.load(self.accelerator, newest)
            self.best = self._best_so_far()
            self.log.say(f"resumed from {newest}")
        self.compiled = compiled_steps(
            self.method.model, self.config.compile, self.config.epochs * self.steps, self.log.say
        )
        with Signals() as self.signals:
            for epoch in range(first, self.config.epochs):
                self._begin(epoch, resumed=done > 0)
                if self.session.warm is not None:
                    self.session.warm.begin(epoch, resumed=done > 0)
                self._train(epoch, done)
                self._finish(epoch)
                done = 0
        if self.session.warm is not None:
            self.session.warm.remove()

    def _begin(self, epoch: int, resumed: bool) -> None:
        """Set what is constant in an epoch; after a resume in its middle the checkpoint has brought the balance."""
        self.session.images.epoch = epoch
        self.session.loader.set_epoch(epoch)  # type: ignore[attr-defined]  # accelerate's loader has it
        accuracy = None
        if self.session.balance is not None and not resumed:
            x, y = self.session.balance
            accuracy = clean_accuracy(self.accelerator, self.method, self.method.clean_logits, x, y, self._eval_batch)
        self.method.begin_epoch(epoch, accuracy)
        if not self.config.optimizer.by_step:
            self.session.schedule.step(epoch)

    def _train(self, epoch: int, done: int) -> None:
        """The steps of one epoch after its first `done`."""
        session, accelerator, log = self.session, self.accelerator, self.log
        loader = accelerator.skip_first_batches(session.loader, done) if done else session.loader
        log.begin(epoch, self.config.epochs, self.steps, done)
        session.wrapped.train()
        torch.backends.cudnn.benchmark = True  # training batches are of one size; AutoAttack's shrink, see `_finish`
        for step, (x, y, *place) in enumerate(loader, start=done):
            update = epoch * self.updates + step // self.config.optimizer.accumulate
            if self.config.optimizer.by_step:
                session.schedule.step_update(update)
            x = x.contiguous(memory_format=torch.channels_last)
            with self._attacks(x, place):
                terms = self._step(x, y)
            # Before the average: weights that are found to have collapsed do not go into it.
            if session.guard is not None and accelerator.sync_gradients and (line := session.guard.after(update + 1)):
                log.say(line)
            if session.average is not None and accelerator.sync_gradients:
                session.average.step(self.method, epoch, update + 1)
            log.step(terms, len(x) * accelerator.num_processes, self._lr, epoch * self.steps + step + 1)
            if step + 1 < self.steps and accelerator.sync_gradients:
                self._checkpoint_if_due(epoch, step + 1)

    @contextmanager
    def _attacks(self, x: Tensor, place: list[Tensor]) -> Iterator[None]:
        """Inside, the method attacks as guard and warm start want it; `place`: index and grid of `x` for the latter."""
        guard, warm = self.session.guard, self.session.warm
        with (
            guard.attacking() if guard is not None else nullcontext(),
            warm.attacking(self.method, x, *place) if warm is not None else nullcontext(),
        ):
            yield

    def _step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """One forward, backward and update; the terms of the loss."""
        session, accelerator = self.session, self.accelerator
        with self.compiled(), accelerator.accumulate(session.wrapped):
            terms: dict[str, Tensor] = session.wrapped(x, y)
            accelerator.backward(terms["loss"])
            if accelerator.sync_gradients and self.config.optimizer.clip_grad is not None:
                accelerator.clip_grad_norm_(self.method.parameters(), self.config.optimizer.clip_grad)
            session.optimizer.step()
            session.optimizer.zero_grad()
        return terms

    def _finish(self, epoch: int) -> None:
        """Measure, log and save after the last step of `epoch`."""
        seconds, speed = self.log.speed()
        torch.backends.cudnn.benchmark = False
        average_statistics(self.accelerator, self.method)
        row: dict[str, Any] = {"epoch": epoch + 1, "seconds": seconds, "images_per_second": speed, "lr": self._lr}
        if self.session.guard is not None:
            row |= self.session.guard.row()
        candidate = self._candidate()
        row |= self._validate(candidate)
        self.log.end(row, self.config.epochs, (epoch + 1) * self.steps)
        if self.accelerator.is_main_process:
            weights.save(candidate.model, self.folder / "weights" / "last.safetensors")
            if (score := self._score(row)) > self.best:
                self.best = score
                weights.save(candidate.model, self.folder / "weights" / "best.safetensors")
        self._save(epoch + 1, 0)
        if self._agreed(False, self.signals.came)[1]:
            raise Interrupted(str(self.folder))

    def _candidate(self) -> Method:
        """The weights to evaluate: the average where there is one."""
        average = self.session.average
        if average is None or not average.is_filled:
            return self.method
        images, size, device = self.session.images, self.config.data.batch_size, self.accelerator.device
        share = range(self.accelerator.process_index, len(images), self.accelerator.num_processes)
        starts = range(0, min(self.config.average.batches, self.steps) * size, size)
        batches = (stack(images.__getitems__(list(share[start : start + size]))) for start in starts)
        method = average.method((x.to(device), y.to(device)) for x, y in batches)
        average_statistics(self.accelerator, method)
        return method

    def _validate(self, method: Method) -> dict[str, float]:
        """Clean and robust accuracy on the held-out images."""
        if self.session.validation is None:
            return {}
        x, y = self.session.validation
        evaluation = self.config.evaluation
        attack = PGD(norm=evaluation.norm, eps=evaluation.eps, steps=evaluation.val_steps)
        size, seed = self._eval_batch, self.config.seed
        return {
            "val_clean": clean_accuracy(self.accelerator, method, method.pixels, x, y, size),
            "val_robust": robust_accuracy(self.accelerator, method.pixels, attack, x, y, size, seed),
        }

    def _score(self, row: dict[str, Any]) -> float:
        """What the best checkpoint is best at; without validation, the newest is."""
        if "val_robust" not in row:
            return float(row["epoch"])
        clean, robust = row["val_clean"], row["val_robust"]
        return float({"robust": robust, "clean": clean, "sum": clean + robust}[self.config.evaluation.select])

    def _best_so_far(self) -> float:
        """The best score of the epochs before a resume, from the run's own log."""
        return max((self._score(row) for row in self.log.rows()), default=-math.inf)

    def _checkpoint_if_due(self, epoch: int, done: int) -> None:
        """Save in the middle of an epoch when a signal came or the last checkpoint is old."""
        if self.accelerator.num_processes > 1:
            if done % self.config.log_every:
                return  # the processes agree now and then, not at every step
            # Saved or not: the attacks see these, and what is trained must not depend on when a checkpoint is due.
            average_statistics(self.accelerator, self.method)
        due = time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes
        due, stop = self._agreed(due, self.signals.came)
        if due or stop:
            self._save(epoch, done)
        if stop:
            raise Interrupted(str(self.folder))

    def _agreed(self, *wishes: bool) -> list[bool]:
        """Whether any process wishes it, for each of `wishes`."""
        if self.accelerator.num_processes == 1:
            return list(wishes)
        total = self.accelerator.reduce(
            torch.tensor(wishes, dtype=torch.float32, device=self.accelerator.device), "sum"
        )
        return [bool(count) for count in total]

    def _save(self, epoch: int, done: int) -> None:
        if self.session.warm is not None:
            self.session.warm.flush()
        checkpoint.save(self.accelerator, self.folder / "checkpoints", epoch, done, self.config.keep_checkpoints)
        self.saved = time.monotonic()

    @property
    def _lr(self) -> float:
        return float(self.session.optimizer.param_groups[0]["lr"])

    @property
    def _eval_batch(self) -> int:
        return self.config.data.eval_batch_size
