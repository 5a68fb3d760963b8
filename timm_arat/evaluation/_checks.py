"""What the attacks silently presume of a model, tried on one batch before anything runs."""

import torch
from torch import Tensor, nn

RANDOM_LOGITS = 1e-4  # AutoAttack's own threshold, on logits scaled to length 1
COUPLED_LOGITS = 1e-2  # above what TF32 and other kernels for a smaller batch make of the same image


def check_model(model: nn.Module, x: Tensor, y: Tensor, *, gradients: bool) -> int:
    """Number of classes K, after a first batch x, NxCxHxW on the model's device, and all labels y were tried.

    gradients: whether attacks will ask for them. Call it in evaluation mode.

    Raises:
        ValueError: not fp32; logits not NxK, not finite, random, of the batch rather than the image, probabilities, or
            without a gradient to the pixels; labels outside [0, K).
    """
    _check_float32(model)
    logits = _logits(model, x)
    with torch.no_grad():
        again = model(x)
        if _apart(logits, again) > RANDOM_LOGITS:
            raise ValueError(
                "the model answers the same images differently in evaluation mode: standard AutoAttack does not hold "
                "for random defences; remove the randomness, or average the logits over it"
            )
        _check_alone(model, x, logits)
    if logits.min() >= 0 and logits.max() <= 1 and ((logits.sum(dim=1) - 1).abs() < 1e-5).all():
        raise ValueError("the model gives probabilities, whose gradients vanish: return logits, without the softmax")
    num_classes = logits.shape[1]
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(
            f"labels span {y.min().item()} to {y.max().item()}, and the model has {num_classes} classes (0 to "
            f"{num_classes - 1}): is it the model for this data set?"
        )
    if gradients:
        _check_gradients(model, x[:1])
    return num_classes


def _check_float32(model: nn.Module) -> None:
    kinds = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    if kinds - {torch.float32}:
        raise ValueError(
            f"the model holds {', '.join(map(str, kinds))}; robustness is measured in fp32: call model.float()"
        )


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """NxK, finite."""
    try:
        with torch.no_grad():
            logits = model(x)
    except (RuntimeError, AssertionError) as error:  # what torch's and timm's layers raise for a wrong shape
        said = " ".join(str(error).split())
        raise ValueError(f"the model cannot take images of shape {tuple(x.shape[1:])}: {said}; resize them") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model gives {shape} for {len(x)} images, wanted {len(x)} rows of logits: give a classifier"
        )
    if logits.shape[1] < 2:
        raise ValueError("the model has one logit, wanted one a class: give torch.cat([-logit, logit], 1) for two")
    if not logits.isfinite().all():
        raise ValueError(
            "the model gives NaN or infinite logits on unchanged images: its weights have diverged, or do not fit"
        )
    return logits


def _apart(logits: Tensor, others: Tensor) -> float:
    """The largest distance of two rows, NxK each, scaled to length 1."""
    unit, unit_others = (nn.functional.normalize(each, dim=1) for each in (logits, others))
    return float((unit - unit_others).norm(dim=1).max())


def _check_alone(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """An image's logits must not depend on the batch around it: attacks form batches anew from what is left."""
    if len(x) == 1:
        return
    for index in {0, len(x) // 2, len(x) - 1}:
        one = slice(index, index + 1)
        try:
            apart = _apart(model(x[one]), logits[one])
        except (RuntimeError, ValueError) as error:  # as BatchNorm in train mode does for one image
            raise ValueError(f"the model takes {len(x)} images at once, and of one alone it says: {error}") from error
        if apart > COUPLED_LOGITS:
            raise ValueError(
                "the model answers an image differently in another batch, as a BatchNorm in train mode does: call "
                "eval() on it in its forward, or normalise each image by itself"
            )


def _check_gradients(model: nn.Module, x: Tensor) -> None:
    with torch.enable_grad():
        pixels = x.detach().clone().requires_grad_()
        logits = model(pixels)
        found = logits.requires_grad and torch.autograd.grad(logits.sum(), pixels, allow_unused=True)[0] is not None
    if not found:
        raise ValueError(
            "the model's logits have no gradient to the pixels (detach, no_grad or numpy in its forward, or a constant "
            "answer): PGD and AutoAttack cannot see it; keep the graph, or measure attacks=('clean',) only"
        )
