"""The ARAT paper's analyses along a run: conflict of gradients now and then, features and statistics after each epoch.

Rows go to RUN/analysis.jsonl. Nothing that training uses is touched: with it, the weights are bitwise those without.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ...analysis import OneTerm, Seen, Spread, compare, conflict, drift, running_statistics, see
from ...analysis.rows import FILE
from ...attacks import PGD
from ...data import subset, tensors
from ...files import append_row
from ...generators import forked
from ...methods import Method
from ...modes import evaluating
from ...norm import branch_if_split
from ...taps import tap_dims
from ..accelerator import unscaled
from ..config import TrainConfig
from ._base import Batch, Companion

if TYPE_CHECKING:
    from ..session import Session


class Analysis(Companion):
    """Measures and writes rows; several processes measure together, and the main one writes.

    Conflict: at optimizer steps 0, `every`, 2 `every` ... on the step's own first batch, in train mode, before weights
    are perturbed or updated. After each epoch: features of held-out images (training images where none are held out)
    under PGD, which draws the same random starts every epoch, and their drift since the epoch before; and the variance
    of the running statistics over the epoch's steps.

    Attributes:
        update: Optimizer steps done.
        seconds: What the measurements of this epoch took.
    """

    def __init__(self, session: "Session") -> None:
        super().__init__(session)
        config = session.config
        self.config, self.path = config.analysis, session.folder / FILE
        layers = self.config.layers or getattr(self.method, "layers", ())
        self.layers = tuple(layers)
        tap_dims(self.method.model, self.layers, in_chans=session.config.data.in_chans)  # a wrong name is an error here
        # At the full eps during a warm-up too, so that epochs can be compared.
        self.attack_by = PGD(norm=config.attack.norm, eps=config.attack.radius, steps=self.config.steps)
        self.images = _images(session, self.config.images)
        self.has_pairs = True
        self._forget()
        self.update, self.measured, self.epoch = 0, -1, 0
        self.before: dict[str, Tensor] = {}

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        return config.analysis.every > 0 and method.attacks

    def begin(self, epoch: int, resumed: bool) -> None:
        self.epoch = epoch
        if not resumed:
            self._forget()
            self.update = epoch * self.session.updates  # where analysis was switched on later, too

    def around_step(self, batch: Batch, x: Tensor, x_adv: Tensor) -> AbstractContextManager[Any]:
        """Compare the gradients where it is due; of accumulated batches, on the first."""
        due = self.update % self.config.every == 0 and self.measured != self.update
        if due and self.has_pairs:
            self.measured = self.update
            self._compare(batch, x, x_adv)
        return nullcontext()

    def after_update(self, update: int, epoch: int) -> None:
        self.update = update
        self.spread.take(running_statistics(self.method.model))

    def row(self) -> dict[str, Any]:
        """What summary.jsonl gets, after the epoch's own row of analysis.jsonl is written."""
        started = time.perf_counter()
        seen = self._see()
        features = seen.adv | self._predicted(seen)
        moved = {layer: drift(z, self.before[layer]).to_json() for layer, z in features.items() if layer in self.before}
        self.before = features
        statistics = running_statistics(self.method.model)
        variances = self.spread.variances(statistics)
        if variances and self.accelerator.num_processes > 1:
            values = torch.tensor(list(variances.values()), device=self.accelerator.device)
            variances = dict(zip(variances, self.accelerator.reduce(values, "mean").tolist(), strict=True))
        self._write(
            "epoch", started, layers=compare(seen, channels=False), drift=moved, statistics_variance=variances,
            steps_of_epoch=self.spread.count,
        )  # fmt: skip
        return {"analysis_seconds": self.seconds}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs."""
        names = ("update", "measured", "seconds", "before")
        return {name: getattr(self, name) for name in names} | {"spread": self.spread.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        for name in ("update", "measured", "seconds", "before"):
            setattr(self, name, state[name])
        self.spread.load_state_dict(state["spread"], self.accelerator.device)

    def _forget(self) -> None:
        """What belongs to one epoch begins anew."""
        self.spread, self.seconds = Spread(), 0.0

    def _compare(self, batch: Batch, x: Tensor, x_adv: Tensor) -> None:
        started, many = time.perf_counter(), self.accelerator.num_processes > 1
        # A compiled network may drop what the backward pass of a second term still needs.
        eager: Any = nullcontext() if self.session.config.compile == "off" else torch.compiler.set_stance("force_eager")
        try:
            with unscaled(self.accelerator), eager:
                found = conflict(
                    self.method, x, batch.y, x_adv, official=self.config.official,
                    reduce=(lambda t: self.accelerator.reduce(t, "mean")) if many else None,
                )  # fmt: skip
        except OneTerm as error:
            self.has_pairs = False
            self.session.say(f"analysis: no conflict of gradients is measured: {error}")
            return
        n = len(batch.x) * self.accelerator.num_processes
        self._write("conflict", started, n=n, official=self.config.official, **found.to_json())

    def _see(self) -> Seen:
        """Features of all images, of which each process takes its share."""
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        x, y = (each[mine] for each in self.images)
        device, network = self.accelerator.device, self.method.network
        size = self.session.config.evaluation.batch_size
        with forked(), evaluating(self.method):
            torch.manual_seed(self.session.config.seed + self.accelerator.process_index)
            with branch_if_split(network, "main"):
                pairs = zip(x.split(size), y.split(size), strict=True)
                x_adv = torch.cat([self.attack_by(network, xb.to(device), yb.to(device)).cpu() for xb, yb in pairs])
            seen = see(network, x, x_adv, self.layers, batch=size, own=self.method.clean_branch == "aux")
        return Seen.joined(gather_object([seen])) if self.accelerator.num_processes > 1 else seen

    @torch.no_grad()
    def _predicted(self, seen: Seen) -> dict[str, Tensor]:
        """What ARAT's predictors make of the adversarial features, in eval mode, as `predicted/LAYER`."""
        predictors = getattr(self.method, "predictors", ())
        of_adversarial = getattr(self.method.config, "predictor", None) == "adversarial"
        if not of_adversarial or len(predictors) != len(seen.adv) or self.config.layers:
            return {}
        with evaluating(self.method):
            return {
                f"predicted/{layer}": predictor(z.to(self.accelerator.device)).float().cpu()
                for predictor, (layer, z) in zip(predictors, seen.adv.items(), strict=True)
            }

    def _write(self, kind: str, started: float, **fields: Any) -> None:
        seconds = time.perf_counter() - started
        self.seconds += seconds
        if self.accelerator.is_main_process:
            place = {"kind": kind, "epoch": self.epoch + 1, "step": self.update}
            append_row(self.path, {**place, **fields, "seconds": seconds})


def _images(session: "Session", count: int) -> tuple[Tensor, Tensor]:
    """Held-out images and their classes, or training images as they are where none are held out; stratified."""
    if session.validation is not None:
        x, y = session.validation
        chosen = subset(y, min(count, len(y)), session.config.seed)
        return x[chosen], y[chosen]
    train = session.data.train
    assert train is not None
    return tensors(train, subset(train.labels, min(count, len(train.labels)), session.config.seed))
