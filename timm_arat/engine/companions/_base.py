"""What accompanies a training run: one protocol, whose hooks the loop calls in the order in which they stand here."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from ...attacks import PGD
from ...methods import Method
from ..config import TrainConfig

if TYPE_CHECKING:
    from ..session import Session


class Batch(NamedTuple):
    """Training images of one step.

    Attributes:
        x: Images NxCxHxW in [0, 1], augmented.
        y: Classes N, or the share of each class NxK.
        numbers: Numbers of the images in the training split, N; None unless a companion `needs_places`.
        grid: Where each pixel of `x` comes from, Nx1xHxW, see `Images.grid`; likewise.
    """

    x: Tensor
    y: Tensor
    numbers: Tensor | None = None
    grid: Tensor | None = None


class Companion:
    """Something that accompanies the run `session`. Each hook does nothing unless a companion says otherwise.

    A companion that the configuration does not ask for is not built, so no hook asks whether it is on.
    """

    needs_places: ClassVar[bool] = False  # wants `Batch.numbers` and `Batch.grid`

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.accelerator, self.method = session.accelerator, session.method

    @classmethod
    def wanted(cls, config: TrainConfig, method: Method) -> bool:
        """Whether `config` asks for it, and it makes sense beside `method`."""
        raise NotImplementedError

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """ValueError where `config` asks for what cannot be; called before anything is built."""

    def begin(self, epoch: int, resumed: bool) -> None:
        """Before the first step of `epoch` (from 0), or before the rest of it after a resume."""

    def attack(self, attack: PGD) -> PGD:
        """The attack of the next step, instead of `attack`."""
        return attack

    def start(self, batch: Batch) -> Tensor | None:
        """Where that attack climbs from, see `PGD.perturb`; None leaves it to the others or to chance."""
        return None

    def around_step(self, batch: Batch, x: Tensor, x_adv: Tensor) -> AbstractContextManager[Any]:
        """Around the forward, backward and update with the images `x` and the adversarial images `x_adv`."""
        return nullcontext()

    def after_update(self, update: int, epoch: int) -> None:
        """After optimizer step `update` (from 1, over the whole run) of `epoch`."""

    def row(self) -> dict[str, Any]:
        """What the epoch's row of summary.jsonl gets."""
        return {}

    def candidate(self, method: Method) -> Method:
        """The weights to validate, save and export in the place of those of `method`, after an epoch."""
        return method

    def before_save(self) -> None:
        """Before a checkpoint, for what lies outside of it."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: tensors, numbers, text, and lists and dictionaries of these."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""

    def end(self) -> None:
        """After the last epoch."""


@contextmanager
def around_step(companions: Sequence[Companion], batch: Batch, x: Tensor, x_adv: Tensor) -> Iterator[None]:
    """Inside all companions' own `around_step`, the first one outermost."""
    with ExitStack() as stack:
        for companion in companions:
            stack.enter_context(companion.around_step(batch, x, x_adv))
        yield
