"""What training costs, in words and numbers. Free of torch; `forecast` measures it."""

import os
from dataclasses import dataclass


@dataclass
class Passes:
    """Passes of images through a network. One pass of N images counts N, here and there `per` image.

    Attributes:
        forward: Forward passes.
        backward: Backward passes, to the images alone (an attack's) or to the weights too: both count as one.
    """

    forward: float = 0.0
    backward: float = 0.0

    @property
    def cost(self) -> float:
        """Forward passes that take as long, by the usual convention: a forward pass is 1, a backward pass 2."""
        return self.forward + 2 * self.backward

    def per(self, images: int) -> "Passes":
        """The same for each of `images`."""
        return Passes(self.forward / images, self.backward / images)


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to cost.

    Attributes:
        passes: Of a training step, an image; the mean over the epochs, whose attacks may differ.
        training: Seconds of all training steps on the device where this was measured.
        measuring: Seconds of validation and of the test at the end, roughly: AutoAttack's depend on the outcome.
        flops: Floating-point operations of all training steps, a multiplication and an addition counted as two.
        memory: Bytes that a step holds: weights, gradients, the optimizer's state, and what the backward pass needs.
        disk: Bytes of the run's folder, at most.
    """

    passes: Passes
    training: float
    measuring: float
    flops: float
    memory: float
    disk: float

    @property
    def seconds(self) -> float:
        return self.training + self.measuring

    def lines(self, processes: int) -> list[str]:
        """For a person; `processes` share the steps."""
        sustained = self.flops / self.training / 1e12
        return [
            f"a step: {self.passes.forward:.4g} forward + {self.passes.backward:.4g} backward passes an image",
            f"training: {self.flops / 1e15:.3g} PFLOP; {hours(self.training)} here, at {sustained:.3g} TFLOP/s; "
            f"{hours(self.flops / 1e12)} at 1 TFLOP/s, to be divided by what another device sustains",
            f"validation and test: about {hours(self.measuring)} here",
            f"memory: {self.memory / 2**30:.2f} GiB of tensors in each of {processes} processes",
            f"disk: {self.disk / 2**30:.2f} GiB in the run's folder",
        ]


def cores() -> int:
    """CPU cores that this process may use; where the system does not say, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
