"""A picture prepared as the model was tested, attacked on the spot, and what came of it in words."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..attacks import PGD
from ..data.decode import decode
from ..evaluation._model import device_of, frozen
from ..hub._escape import inline
from ._zoo import Checkpoint

MAX_STEPS = 100
MAX_RATIO = 50  # of a picture's sides: a strip keeps its ratio when it is resized, and would become huge
SHOWN = 320  # pixels of a shown picture's shorter side at least; smaller ones are enlarged by a whole number


@dataclass(frozen=True)
class Outcome:
    """One attack.

    Attributes:
        x, x_adv: The picture as the model sees it, before and after, 1xCxHxW in [0, 1].
        before, after: Probabilities of its K classes.
        attacked: The class that the attack leads away from.
        chosen: Whether a person chose it; else it is the model's own prediction.
        eps, steps: Of the attack; eps in pixels of [0, 1].
    """

    x: Tensor
    x_adv: Tensor
    before: Tensor
    after: Tensor
    attacked: int
    chosen: bool
    eps: float
    steps: int


def prepare(checkpoint: Checkpoint, path: str | Path) -> Tensor:
    """The image file `path` as `checkpoint` was tested on images, 1xCxHxW in [0, 1].

    Of any size and kind of pixel: transparent ones lie on white. A camera's note of how it was held is followed, which
    no reader of data sets does: a person who drops a photograph sees it upright.

    Raises:
        ValueError: it is no image that Pillow reads, or too long a strip.
    """
    with open(path, "rb") as file:
        image = ImageOps.exif_transpose(decode(file, checkpoint.mode, "this picture"))
    if max(image.size) > MAX_RATIO * min(image.size):
        raise ValueError(
            f"this picture is {image.width}x{image.height} pixels, too long a strip: cut it to at most {MAX_RATIO} to 1"
        )
    return checkpoint.transform(image).float()[None] / 255


def attack(
    checkpoint: Checkpoint, x: Tensor, *, eps: float, mix: float = 0.0, steps: int = 20, label: int | None = None
) -> Outcome:
    """Predict, attack by `PGD` of the checkpoint's norm, and predict again; the same twice gives the same.

    Args:
        x: One image, 1xCxHxW in [0, 1].
        eps: The norm's bound in pixels of [0, 1], at most the checkpoint's `max_eps`; 0 changes nothing.
        mix: Share of the clean branch, in [0, 1], in the model that is asked and attacked.
        steps: Of the gradient, 1 to 100.
        label: The class to lead away from; the model's own prediction if None.

    Raises:
        ValueError: one of them is out of its range.
    """
    # The sliders keep to these, but not everybody who speaks to the page's server moves sliders.
    if not 0 <= eps <= checkpoint.max_eps * (1 + 1e-6):
        raise ValueError(f"eps is {eps:g}: it goes from 0 to {checkpoint.max_eps:g} for {checkpoint.name}")
    if not (1 <= steps <= MAX_STEPS and steps == int(steps)):
        raise ValueError(f"{steps} steps: there may be 1 to {MAX_STEPS}")
    if label is not None and label not in range(len(checkpoint.labels)):
        raise ValueError(f"there is no class {label}: {checkpoint.name} has {len(checkpoint.labels)}")
    model = checkpoint.deployed(mix)
    x = x.to(device_of(model))
    with frozen(model):
        torch.manual_seed(0)
        before = _probabilities(model, x)
        attacked = int(before.argmax()) if label is None else label
        x_adv = x
        if eps:
            pgd = PGD(norm=checkpoint.norm, eps=eps, steps=int(steps))
            x_adv = pgd(model, x, torch.tensor([attacked], device=x.device))
        after = _probabilities(model, x_adv)
    return Outcome(x.cpu(), x_adv.cpu(), before, after, attacked, label is not None, eps, int(steps))


@torch.no_grad()
def _probabilities(model: torch.nn.Module, x: Tensor) -> Tensor:
    return model(x)[0].double().softmax(-1).cpu()


def explain(checkpoint: Checkpoint, outcome: Outcome) -> str:
    """Markdown: whether the attack succeeded, within which bound, and which class it led away from."""
    was, now = int(outcome.before.argmax()), int(outcome.after.argmax())
    attacked = f"**{inline(checkpoint.labels[outcome.attacked])}**"

    def said(probabilities: Tensor, index: int) -> str:
        return f"**{inline(checkpoint.labels[index])}** ({_percent(float(probabilities[index]))})"

    if not outcome.eps:
        return (
            "### Nothing was changed\n"
            f"At eps 0 there is no attack, so the prediction stays {said(outcome.before, was)}. Slide eps up."
        )
    title = "Wrong before the attack" if was != outcome.attacked else "It held" if was == now else "It was fooled"
    led = (
        "which you chose as the true class"
        if outcome.chosen
        else "the model's own prediction, since no true class is chosen"
    )
    changed = (
        f"changed from {said(outcome.before, was)} to {said(outcome.after, now)}"
        if was != now
        else f"stayed {said(outcome.before, was)}, now with {_percent(float(outcome.after[now]))}"
    )
    caveat = " A stronger attack may still find a way." if title == "It held" else ""
    return (
        f"### {title}\nThe prediction {changed}, {bound(checkpoint.norm, outcome.eps)}. {outcome.steps} steps "
        f"of PGD led away from {attacked}, {led}.{caveat}"
    )


def bound(norm: str, eps: float) -> str:
    """What `eps` means, as the end of a sentence."""
    if norm == "linf":
        return f"and no pixel value moved by more than {eps * 255:.3g}/255"
    return f"and the whole change has an {norm} norm of at most {eps:g} (pixels in [0, 1])"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if 0.01 <= share <= 0.99 else f"{100 * share:.1f} %"


def magnified(outcome: Outcome) -> tuple[Tensor, float]:
    """The perturbation, 1xCxHxW in [0, 1], grey where nothing changed, and how many times it is magnified."""
    change = outcome.x_adv - outcome.x
    factor = 0.5 / largest if (largest := float(change.abs().max())) else 1.0
    return (0.5 + factor * change).clamp(0, 1), factor


def picture(x: Tensor) -> Image.Image:
    """1xCxHxW in [0, 1] as a picture to look at, small ones enlarged, each pixel to a square."""
    pixels = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    times = max(1, -(-SHOWN // min(image.size)))
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
