"""Defences that do not defend, and what `evaluate` says of each: `python -m benchmarks.defences` writes the table.

Each wraps an honest model and, under an attack that sees through it, is as weak as that model. The command measures
them round the published resnet20_cifar_arat, without AutoAttack; the tests do the same round a small network.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from timm_arat import evaluate, in_pixels
from timm_arat.data import DataConfig, load

from .document import write_block


class Defence(nn.Module):
    """An honest model, NxCxHxW in [0, 1] to NxK, behind a defence."""

    speaks: str  # a part of the error or warning that catches it

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class TrainModeNorms(Defence):
    """BatchNorms that use the statistics of the batch, whatever mode they are set to."""

    speaks = "in another batch"

    def forward(self, x: Tensor) -> Tensor:
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        return self.model(x)


class CornerGradient(Defence):
    """The gradient passes through the upper left quarter of the image only."""

    speaks = "of the pixels change the logits"

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        seen = torch.zeros_like(x)
        seen[:, :, :height, :width] = 1
        return self.model(x * seen + x.detach() * (1 - seen))


class Shattered(Defence):
    """A ripple too small to see on the input; its slope drowns that of the model."""

    speaks = "PGD at linf 0.5 leaves"

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + 0.02 * torch.sin(2000 * x))


class Reversed(Defence):
    """The right logits, whose gradient has the wrong sign."""

    speaks = "PGD at linf 0.5 leaves"

    def forward(self, x: Tensor) -> Tensor:
        return self.model(2 * x.detach() - x)


class Detached(Defence):
    """No gradient at all."""

    speaks = "no gradient to the pixels"

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach())


class Quantized(Defence):
    """Pixels rounded down to 16 levels: the gradient is zero everywhere."""

    speaks = "met a gradient of zeros"

    def forward(self, x: Tensor) -> Tensor:
        return self.model(torch.floor(16 * x) / 16)


class Noise(Defence):
    """Random noise on the input."""

    speaks = "answers the same images differently"

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + 0.05 * torch.randn_like(x))


class Softmax(Defence):
    """Probabilities in the place of logits."""

    speaks = "gives probabilities"

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).softmax(1)


class Constant(Defence):
    """The same answer to every image; it is in the graph, with a gradient of zero."""

    speaks = "met a gradient of zeros"

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return 0 * logits + torch.arange(logits.shape[1], device=x.device)


DEFENCES: tuple[type[Defence], ...] = (
    TrainModeNorms,
    CornerGradient,
    Shattered,
    Reversed,
    Detached,
    Quantized,
    Noise,
    Softmax,
    Constant,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "attacks.md"
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "defences.json"
# Beside a checkout, at whatever depth; not part of the repository.
SHARED = [folder / "shared" / "data" / "cifar10" for folder in Path(__file__).parents]
CIFAR10 = next((folder for folder in SHARED if folder.is_dir()), SHARED[2])
IMAGES = 100


def said(model: nn.Module, data: Any, **settings: Any) -> dict[str, Any]:
    """What `evaluate` answers, without AutoAttack: accuracies and warnings, or the error."""
    try:
        result = evaluate(model, data, attacks=("clean", "pgd"), progress=False, **settings)
    except ValueError as error:
        return {"error": str(error)}
    assert result.clean and result.pgd
    return {"clean": result.clean.accuracy, "pgd": result.pgd.accuracy, "warnings": list(result.warnings)}


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown of what `main` measured."""
    lines = ["| Model | clean | PGD-20 | `evaluate` says |", "|---|---|---|---|"]
    for name, row in found.items():
        numbers = [f"{100 * row[key]:.1f}" if key in row else "refused" for key in ("clean", "pgd")]
        words = row.get("error") or "; ".join(row["warnings"]) or "nothing"
        lines.append(f"| {name} | {numbers[0]} | {numbers[1]} | {words} |")
    return lines


def main() -> None:
    """Measure, write the JSON, and render its table in the document."""
    data = DataConfig(name=f"hfds/{CIFAR10}")
    honest = timm.create_model("resnet20_cifar_arat", pretrained=True)
    images = load(data, input_size=(3, 32, 32), splits=("test",)).test
    found = {"resnet20_cifar_arat as it is": said(honest, images, pgd_images=IMAGES)}
    for kind in DEFENCES:
        name = " ".join((kind.__doc__ or "").split()).rstrip(".")
        found[name] = said(kind(in_pixels(honest)), images, pgd_images=IMAGES)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    write_block(DOCUMENT, "defences", table(found))


if __name__ == "__main__":
    main()
