"""How far an evaluation is: a bar on a terminal, in a pipe or a file a line a minute."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

PGD_STEPS = 20
# Forward passes an image, a backward pass counted as two; AutoAttack's of an image that nothing breaks.
COST: Mapping[str, int] = {
    "clean": 1,
    "fgsm": 4,
    "pgd": 3 * PGD_STEPS + 1,
    "unbounded": 3 * PGD_STEPS + 1,
    "apgd-ce": 300,
    "apgd-t": 2700,
    "fab-t": 3600,
    "square": 5000,
}
LINE_SECONDS = 60


class Progress:
    """Counts passes of single images. What is broken early, or not attacked at all, is counted as done at once.

    Args:
        total: Passes if no image is broken: the most there can be.
        show: Whether to show it, and where a line goes: to a function, or to the standard error.
    """

    def __init__(self, total: int, show: bool | Callable[[str], None]) -> None:
        self.bar = tqdm(total=total, disable=None if show else True, unit="pass", unit_scale=True)
        self.say = (show if callable(show) else _to_stderr) if show and self.bar.disable else None
        self.total, self.done, self.running = total, 0, 0
        self.worked = 0  # passes that took time
        self.attack = ""
        self.started = self.told = time.monotonic()

    def advance(self, attack: str, images: int, ran: bool) -> None:
        """`images` are done with `attack`; without `ran`, because there was nothing to attack."""
        if attack != self.attack:
            self.attack = attack
            self.bar.set_description(attack, refresh=False)
        cost = images * COST.get(attack.split()[-1], 1)  # what is no attack, as a corruption, is one pass
        self.done += cost
        self.worked += cost if ran else 0
        self.running = 0
        self.bar.update(cost)

    def tick(self, images: int, gradient: bool) -> None:
        """The model sees `images` within a batch that is not done; tells if a minute has passed."""
        self.running += images * (3 if gradient else 1)
        now = time.monotonic()
        if self.say is None or now - self.told < LINE_SECONDS:
            return
        self.told = now
        seconds = now - self.started
        left = seconds / (self.worked + self.running) * (self.total - self.done - self.running)
        share = min(1.0, (self.done + self.running) / self.total)
        self.say(f"evaluation  {100 * share:.0f} % of the passes, at most {max(0, left) / 60:.0f} min left")

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator["Progress"]:
        """Tick whenever `net` is called with images NxCxHxW, and close the bar at the end."""

        def see(module: nn.Module, args: Any) -> None:
            x: Tensor = args[0]
            self.tick(len(x), x.requires_grad)

        hook = net.register_forward_pre_hook(see)
        try:
            with self.bar:
                yield self
        finally:
            hook.remove()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
