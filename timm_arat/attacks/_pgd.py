"""The settings of projected gradient descent (Madry et al., arXiv:1706.06083); `_search` is the attack itself."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ._objectives import Objective
    from ._search import Perturbed


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent on images in [0, 1]: `attack(model, x, y)` gives adversarial images.

    The attack holds settings only. It never writes into its arguments; it leaves every module's mode, requires_grad,
    `.grad` and (but for `norm_mode='train'`) running statistic of the model as they were.

    The gradient is that of the sum of the images' cross-entropies, as in the textbook, scaled at the logits: the step
    of every norm here ignores the scale of a gradient, and under fp16 or on confident images the unscaled one
    underflows to zero. With `norm_mode='eval'` each image has a scale of its own, which brings its largest entry to 1,
    and what is climbed are the log-odds of the other classes, which rise and fall with the cross-entropy; so an image
    is attacked however confident the model is, for any finite logits. In the other modes images act on each other
    through the statistics of their batch; there one power of two scales the plain gradients of all.

    Attributes:
        norm: Threat model, the norm that bounds the perturbation of one image.
        eps: Its bound in pixels of [0, 1]; 8/255 for linf if not given, required for l2 and l1.
        step_size: Length of one step in `norm`, in pixels; 2.5 eps / steps, at most eps, if not given.
            For l1 the length of the first step, eps if not given, from which the steps shorten linearly.
        steps: Number of gradient steps.
        random_start: Start from a uniform point of the ball instead of the image.
        restarts: Number of independent starts, of which each image keeps the one with the highest loss.
        keep_best: Keep the step with the highest loss of each image instead of the last.
        targeted: `y` is the class to reach, not the one to leave.
        norm_mode: BatchNorm during the attack. eval: running statistics, the network that is deployed. batch:
            statistics of the batch, nothing is updated. train: train mode with updates (as the official ARAT code).
            Other layers are in eval mode for eval and batch.
        warmup_epochs: Epochs over which training raises eps (and the step) linearly to its value.
        progressive_epochs: Epochs over which training raises the number of steps linearly from 1 to `steps` (a
            curriculum, cf. arXiv:1805.04807). A step size that is not given follows it.

    Raises:
        ValueError: a setting is out of its range.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: float | None = None
    step_size: float | None = None
    steps: int = 10
    random_start: bool = True
    restarts: int = 1
    keep_best: bool = False
    targeted: bool = False
    norm_mode: Literal["eval", "batch", "train"] = "eval"
    warmup_epochs: int = 0
    progressive_epochs: int = 0

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2", "l1"):
            raise ValueError(f"norm={self.norm!r} is not one of linf, l2, l1")
        if self.eps is None:
            if self.norm != "linf":
                raise ValueError(f"eps must be given for norm={self.norm!r}: its scale depends on the image size")
            object.__setattr__(self, "eps", 8 / 255)
        if self.norm == "linf" and not 0 < self.eps < 1:  # type: ignore[operator]  # eps is set above
            raise ValueError(f"eps={self.eps} is not in (0, 1): images are in [0, 1], write 8/255 rather than 8")
        if not self.eps > 0:  # type: ignore[operator]
            raise ValueError(f"eps={self.eps} is not above 0")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} is not above 0; leave it out for 2.5 eps / steps")
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not at least 1")
        for name in ("warmup_epochs", "progressive_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is not at least 0")
        if self.norm_mode not in ("eval", "batch", "train"):
            raise ValueError(f"norm_mode={self.norm_mode!r} is not one of eval, batch, train")

    @property
    def radius(self) -> float:
        """`eps`, which is never None once constructed."""
        assert self.eps is not None
        return self.eps

    @property
    def step_length(self) -> float:
        """`step_size`, or its default from eps and steps."""
        if self.step_size is not None:
            return self.step_size
        return self.radius if self.norm == "l1" else min(2.5 * self.radius / self.steps, self.radius)

    def at_epoch(self, epoch: int) -> "PGD":
        """The attack of training epoch `epoch`, counted from 0: weaker during a warm-up, itself afterwards."""
        attack = self
        if epoch < self.progressive_epochs:
            attack = replace(attack, steps=1 + (self.steps - 1) * epoch // self.progressive_epochs)
        if epoch < self.warmup_epochs:
            share = (epoch + 1) / (self.warmup_epochs + 1)
            attack = replace(attack, eps=share * self.radius, step_size=share * attack.step_length)
        return attack

    def __call__(self, model: "nn.Module", x: "Tensor", y: "Tensor", objective: "Objective | None" = None) -> "Tensor":
        """Adversarial images for `x` (NxCxHxW in [0, 1], classes `y` N); `model` takes [0, 1], see `in_pixels`."""
        return self.perturb(model, x, y, objective=objective).x_adv

    def perturb(
        self,
        model: "nn.Module",
        x: "Tensor",
        y: "Tensor",
        *,
        start: "Tensor | None" = None,
        objective: "Objective | None" = None,
    ) -> "Perturbed":
        """As calling the attack, with what it met on the way.

        Args:
            y: Classes N, or the share of each class NxK (mixed labels).
            start: Images NxCxHxW from whose projection the first of the restarts climbs; a pixel that is NaN starts as
                it does without them.
            objective: What to climb instead of the cross-entropy with `y`: a function of the logits NxK (in float64)
                to one loss per image, N.

        Raises:
            ValueError: images outside [0, 1], or labels or a start that do not fit them.
        """
        from ._search import check, search  # here, so that reading a recipe does not wait for torch

        check(x, y, start)
        return search(self, model, x, y, start=start, objective=objective)
