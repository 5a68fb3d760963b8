"""The model under evaluation: found, wrapped, and frozen for the time of it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from timm_arat.evaluation._where import named_device
from timm_arat.generators import forked
from timm_arat.models import WeightsNotFoundError, create, exported
from timm_arat.models._json import read_json
from timm_arat.models._secrets import without_password
from timm_arat.models._weights import RECORD
from timm_arat.modes import evaluating
from timm_arat.names import nearest
from timm_arat.pixels import InPixels, in_pixels


def open_model(model: str | Path | nn.Module, device: str | torch.device | None = None) -> tuple[nn.Module, str]:
    """The model that takes [0, 1] images, and its name.

    model: what `timm.create_model(..., pretrained=True)` takes, a run's folder (its `model/` is the exported one), an
    exported folder, or a module: a timm model is wrapped by `in_pixels`, any other is taken to want [0, 1] already.
    device: for a model that is built here (None: cuda if there is one); a module stays where it is.

    Raises:
        ValueError: no such model, no weights for it, or weights that do not fit; one line, with the way out.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module  # the wrapper hides pretrained_cfg, and with it the normalisation
    if isinstance(model, nn.Module):
        built = getattr(model, "model", model) if isinstance(model, InPixels) else model
        name = (getattr(built, "pretrained_cfg", None) or {}).get("architecture") or type(built).__name__
        return (in_pixels(model) if getattr(model, "pretrained_cfg", None) else model), name
    timm_name, place = _timm_name(str(model)), named_device(device)
    try:
        built = create(timm_name, pretrained=True)
    except WeightsNotFoundError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # timm, safetensors, pickle and the Hub's client raise a dozen kinds for bad weights
        raise ValueError(_why_not(timm_name, error)) from error
    return in_pixels(built.to(place)), _name(model)


def _name(model: str | Path) -> str:
    """What a run calls its own results, the name of a checkpoint's folder, or `model` as it was given."""
    if (Path(model) / RECORD).is_file():
        return Path(model).resolve().name
    config = Path(model) / "model" / "config.json"
    if not config.is_file():
        return str(model)
    facts = read_json(config)
    return f"{facts['architecture']} {facts.get('training', {}).get('method', '')}".strip()


def _timm_name(model: str) -> str:
    if model.startswith(("hf-hub:", "local-dir:")) or timm.is_model(model):
        return model
    if folder := exported(model):
        return f"local-dir:{folder}"
    if Path(model).is_dir():
        raise ValueError(
            f"{model} holds no exported model (model/config.json): let the run end, or give its model's folder"
        )
    check_name(model)
    return model


def check_name(model: str) -> None:
    """ValueError, with what is near, unless timm knows a model of this name."""
    if timm.is_model(model):
        return
    known = [*timm.list_models(), *timm.list_models(pretrained=True)]
    raise ValueError(
        f"no model is called {model!r}: {nearest(model, known, most=3)} timm.list_models() names them all; a Hub model "
        "is hf-hub:ORG/NAME, a folder local-dir:PATH"
    )


def _why_not(timm_name: str, error: Exception) -> str:
    said = without_password((str(error).strip() or type(error).__name__).splitlines()[0])
    if timm_name.startswith("local-dir:"):
        return (
            f"{timm_name} is not a model that timm can load ({said}): it may be cut short or foreign; export it again"
        )
    if "No pretrained weights" in said:
        return (
            f"{timm_name} has no trained weights: name one of timm.list_models(pretrained=True), a folder or hf-hub:..."
        )
    return (
        f"{timm_name} could not be loaded ({said}): check the name and the connection, or download it and give "
        "local-dir:PATH"
    )


def device_of(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def fingerprint(model: nn.Module) -> str:
    """A hash of structure, parameters and buffers: two models with the same one answer alike."""
    found = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter gradients, no autocast, its own random generator; all put back at the end.

    So are buffers, which a model changes that sets itself to train mode. The wrapper that accelerate puts round the
    forward of a prepared model, which runs it under autocast, is off meanwhile.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    no_autocast = torch.autocast(device_of(model).type, enabled=False)
    with no_autocast, forked(), _own_forward(model), _kept_buffers(model), evaluating(model):
        try:
            model.requires_grad_(False)  # the backward pass to the pixels then costs a third less
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in kept:
                module._buffers[name] = buffer  # the same tensor as before, whose values may be others now
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """accelerate keeps the forward that it wrapped as `_original_forward` of the module."""
    wrapped = [module for module in model.modules() if "_original_forward" in vars(module)]
    forwards = [module.forward for module in wrapped]
    try:
        for module in wrapped:
            module.forward = vars(module)["_original_forward"]
        yield
    finally:
        for module, forward in zip(wrapped, forwards, strict=True):
            module.forward = forward


class LogitsOf(nn.Module):
    """A model whose answer holds its logits as an attribute, as those of transformers do; gives them alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def with_logits(model: nn.Module, x: Tensor) -> nn.Module:
    """`model`, or `LogitsOf` it if that is how it answers x, NxCxHxW; what fails here is for `check_model` to say."""
    try:
        with torch.no_grad():
            answer = model(x)
    except (RuntimeError, AssertionError, ValueError):
        return model
    return LogitsOf(model).eval() if isinstance(getattr(answer, "logits", None), Tensor) else model
