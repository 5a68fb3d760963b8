"""The epochs: attack, step, measure, log, checkpoint, in that order and in one place."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..attacks import PGD
from ..compiling import compiled_steps
from ..methods import Method
from . import checkpoint, weights
from .best import score
from .checkpoint import Position
from .companions import Batch, around_step
from .log import Log, diverged
from .measure import anywhere, average_statistics, clean_accuracy, robust_accuracy
from .session import Session
from .signals import Signals


class Interrupted(Exception):
    """Training was stopped by a signal. Its text is the folder of the run, where a checkpoint is in it, or empty."""


class Loop:
    """Trains `session` from where it stands to the last epoch; its folder gets checkpoints, best and last weights."""

    def __init__(self, session: Session, log: Log, position: Position | None = None) -> None:
        self.session, self.log, self.position = session, log, position or Position()
        self.config, self.folder, self.companions = session.config, session.folder, session.companions
        self.accelerator, self.method = session.accelerator, session.method
        self.steps = len(session.loader)
        self.follows_score = self.config.optimizer.schedule == "plateau"
        self.saved = time.monotonic()
        self.best = self.position.best
        self.compiled: Callable[[], AbstractContextManager[Any]] = nullcontext

    def run(self) -> None:
        """Train.

        Raises:
            Interrupted: SIGINT or SIGTERM came, and a checkpoint was written.
            ValueError: the loss or the weights are not finite.
        """
        first, done, _ = self.position
        total = self.config.epochs * self.steps
        self.compiled = compiled_steps(self.method.model, self.config.compile, total, self.log.say)
        with Signals() as self.signals:
            for epoch in range(first, self.config.epochs):
                self._begin(epoch, resumed=done > 0)
                self._train(epoch, done)
                self._finish(epoch)
                done = 0
        for companion in self.companions:
            companion.end()

    def try_steps(self, epoch: int, batches: Iterable[Batch], begun: bool = False) -> None:
        """Take steps of `epoch` (from 0) on `batches` alone, to measure what they cost; nothing is logged or saved.

        What comes before the first step of an epoch, such as ARAT's measurement of clean accuracy, is left out where
        the epoch has `begun`.
        """
        if not begun:
            self._begin(epoch, resumed=False)
        self.session.wrapped.train()
        for batch in batches:
            self._step(batch, self.config.attack.at_epoch(epoch), 1.0)

    def _begin(self, epoch: int, resumed: bool) -> None:
        """Set what is constant in an epoch."""
        self.session.images.epoch = epoch
        self.session.loader.set_epoch(epoch)  # type: ignore[attr-defined]  # accelerate's loader has it
        self.method.begin_epoch()
        for companion in self.companions:
            companion.begin(epoch, resumed)
        if not self.config.optimizer.by_step and not self.follows_score:
            self.session.schedule.step(epoch)

    def _train(self, epoch: int, done: int) -> None:
        """The steps of one epoch after its first `done`."""
        session, accelerator, log = self.session, self.accelerator, self.log
        loader = accelerator.skip_first_batches(session.loader, done) if done else session.loader
        log.begin(epoch, self.config.epochs, self.steps, done)
        session.wrapped.train()
        torch.backends.cudnn.benchmark = True  # training batches are of one size; AutoAttack's shrink, see `_finish`
        attack = self.config.attack.at_epoch(epoch)
        for step, (x, *rest) in enumerate(loader, start=done):
            update = epoch * session.updates + step // self.config.optimizer.accumulate
            if self.config.optimizer.by_step:
                session.schedule.step_update(update)
            batch = Batch(x.contiguous(memory_format=torch.channels_last), *rest)
            terms = self._step(batch, attack, self._share(step))
            if accelerator.sync_gradients:
                for companion in self.companions:
                    companion.after_update(update + 1, epoch)
            log.step(terms, len(x) * accelerator.num_processes, self._lr, epoch * self.steps + step + 1)
            if step + 1 < self.steps and accelerator.sync_gradients:
                self._checkpoint_if_due(epoch, step + 1)

    def _share(self, step: int) -> float:
        """What accelerate leaves out of a batch's gradient: it divides by `accumulate` also where an epoch's end leaves
        fewer batches for an update, which are to be averaged as the others are (as by timm)."""
        group, left = self.config.optimizer.accumulate, self.steps % self.config.optimizer.accumulate
        return group / left if step >= self.steps - left else 1.0

    def _step(self, batch: Batch, attack: PGD, share: float) -> dict[str, Tensor]:
        """Attack, forward, backward, update; the terms of the loss."""
        session, accelerator = self.session, self.accelerator
        attack = reduce(lambda found, companion: companion.attack(found), self.companions, attack)
        start = next((at for companion in self.companions if (at := companion.start(batch)) is not None), None)
        with self.compiled():
            with accelerator.autocast():
                x, x_adv = self.method.perturb(batch.x, batch.y, start, attack)
            with around_step(self.companions, batch, x, x_adv), accelerator.accumulate(session.wrapped):
                terms: dict[str, Tensor] = session.wrapped(x, batch.y, x_adv)
                accelerator.backward(terms["loss"] * share)
                if accelerator.sync_gradients and self.config.optimizer.clip_grad is not None:
                    accelerator.clip_grad_norm_(self.method.parameters(), self.config.optimizer.clip_grad)
                session.optimizer.step()
                session.optimizer.zero_grad()
        return terms

    def _finish(self, epoch: int) -> None:
        """Measure, log and save after the last step of `epoch`."""
        seconds, speed = self.log.speed()
        torch.backends.cudnn.benchmark = False
        self._check_finite()
        average_statistics(self.accelerator, self.method)
        row: dict[str, Any] = {"epoch": epoch + 1, "seconds": seconds, "images_per_second": speed, "lr": self._lr}
        for companion in self.companions:
            row |= companion.row()
        candidate = reduce(lambda found, companion: companion.candidate(found), self.companions, self.method)
        row |= self._validate(candidate)
        if self.follows_score:
            self.session.schedule.step(epoch + 1, score(row, self.config.validation.select))
        self.log.end(row, self.config.epochs, (epoch + 1) * self.steps)
        # The checkpoint comes last and says what the best score is: a kill before it repeats the epoch, to the same
        # row and the same weights; after it the epoch is whole.
        found = score(row, self.config.validation.select)
        if is_best := self.best is None or found > self.best:
            self.best = found
        if self.accelerator.is_main_process:
            weights.save(candidate.model, self.folder / "weights" / "last.safetensors")
            if is_best:
                weights.save(candidate.model, self.folder / "weights" / "best.safetensors")
        self._save(epoch + 1, 0)
        if anywhere(self.accelerator, self.signals.stop)[0]:
            raise Interrupted(str(self.folder))

    def _validate(self, method: Method) -> dict[str, float]:
        """Clean and robust accuracy on the held-out images."""
        if self.session.validation is None:
            return {}
        x, y = self.session.validation
        threat, seed, size = self.config.attack, self.config.seed, self.config.evaluation.batch_size
        attack = PGD(norm=threat.norm, eps=threat.eps, steps=self.config.validation.steps)
        return {
            "val_clean": clean_accuracy(self.accelerator, method, method.network, x, y, size),
            "val_robust": robust_accuracy(self.accelerator, method.network, attack, x, y, size, seed),
        }

    def _checkpoint_if_due(self, epoch: int, done: int) -> None:
        """Save in the middle of an epoch when a signal came or the last checkpoint is old."""
        if self.accelerator.num_processes > 1:
            if done % self.config.log_every:
                return  # the processes agree now and then, not at every step
            # Saved or not: the attacks see these, and what is trained must not depend on when a checkpoint is due.
            average_statistics(self.accelerator, self.method)
        due = time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes
        due, stop = anywhere(self.accelerator, due, self.signals.stop)
        if due or stop:
            self._check_finite()
            self._save(epoch, done)
        if stop:
            raise Interrupted(str(self.folder))

    def _check_finite(self) -> None:
        """ValueError where a loss or a weight is no number: neither weights nor a checkpoint are saved of that."""
        broken = next((name for name, p in self.method.named_parameters() if not p.isfinite().all()), None)
        lost, weight = anywhere(self.accelerator, not self.log.is_finite(), broken is not None)
        if lost or weight:
            raise diverged("a loss of this epoch is not finite" if lost else f"the weight {broken} is not finite")

    def _save(self, epoch: int, done: int) -> None:
        for companion in self.companions:
            companion.before_save()
        checkpoint.save(self.session, self.log, self.folder / "checkpoints", Position(epoch, done, self.best))
        self.saved = time.monotonic()

    @property
    def _lr(self) -> float:
        return max(float(group["lr"]) for group in self.session.optimizer.param_groups)  # layers may have a share of it
