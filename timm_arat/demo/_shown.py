"""What the page's components show, as plain values: the settings of a checkpoint, an answer, the examples."""

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ._attack import attack, explain, magnified, picture, prepare
from ._zoo import Checkpoint, Zoo

OWN = "the model's own prediction"


def settings(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """What the components that depend on the checkpoint show, by component."""
    linf = checkpoint.norm == "linf"
    own = round(checkpoint.levels * checkpoint.eps, 6)
    return {
        "about": {"value": checkpoint.about},
        "eps": {
            "maximum": round(checkpoint.levels * checkpoint.max_eps, 6),
            "value": own,
            "step": 0.5 if linf else own / 20,
            "minimum": 0,
            "label": f"eps ({checkpoint.norm}{', in 255ths' if linf else ''})",
            "info": ("How far each pixel value may move." if linf else "How far the whole picture may move.")
            + f" The checkpoint was trained for {own:g}.",
        },
        "mix": {
            "minimum": 0,
            "maximum": 1,
            "value": 0,
            "step": 0.05,
            "visible": checkpoint.has_dial,
            "label": "mix, the dial between the branches",
            "info": "0: as published. 1: the branch of clean images, which is fooled sooner.",
        },
        "label": {
            "choices": [(OWN, -1), *((name, index) for index, name in enumerate(checkpoint.labels))],
            "value": -1,
            "label": "True class, which the attack leads away from",
            "info": "Where you choose none, the attack leads away from what the model itself predicts.",
        },
    }


def answer(zoo: Zoo, name: str, path: str | None, eps: float, mix: float, label: int, steps: int) -> list[Any]:
    """Attack the image file `path`: sentence, probabilities before and after by name, three pictures, a caption.

    eps: as the slider has it, in 255ths for linf. label: a class, or -1 for the model's own prediction.

    Raises:
        ValueError: there is no picture yet, or something is out of its range; a sentence for the visitor.
    """
    if not path:
        raise ValueError("There is no picture yet: drop one, or click one of the examples.")
    checkpoint = zoo.open(name)
    outcome = attack(
        checkpoint,
        prepare(checkpoint, path),
        eps=eps / checkpoint.levels,
        mix=mix if checkpoint.has_dial else 0.0,
        steps=steps,
        label=None if label == -1 else label,
    )
    perturbation, factor = magnified(outcome)
    return [
        explain(checkpoint, outcome),
        dict(zip(checkpoint.labels, outcome.before.tolist(), strict=True)),
        dict(zip(checkpoint.labels, outcome.after.tolist(), strict=True)),
        *map(picture, (outcome.x, outcome.x_adv, perturbation)),
        f"The change, × {factor:.3g}" if outcome.eps else "No change",
    ]


def examples() -> list[Path]:
    """Pictures to click: a drawing of ours, and scikit-learn's photographs where it is installed."""
    folder = Path(tempfile.mkdtemp(prefix="timm_arat_demo_"))
    _ship().save(folder / "drawn_ship.png")
    found = [folder / "drawn_ship.png"]
    try:
        import sklearn.datasets
    except ImportError:
        return found
    photographs = Path(sklearn.datasets.__file__).parent / "images"
    return found + [path for path in (photographs / "china.jpg", photographs / "flower.jpg") if path.is_file()]


def _ship() -> Image.Image:
    image = Image.new("RGB", (256, 256), (150, 190, 225))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 165, 256, 256), fill=(40, 80, 120))  # the sea
    draw.polygon([(25, 140), (232, 140), (205, 185), (50, 185)], fill=(60, 30, 30))
    draw.rectangle((80, 105, 180, 140), fill=(235, 235, 235))
    draw.rectangle((110, 75, 150, 105), fill=(220, 220, 220))
    draw.rectangle((122, 45, 138, 75), fill=(190, 50, 40))
    return image
