"""Pixels that a model looks at and whose gradient it hides."""

import torch
from torch import Tensor, nn

IMAGES = 16  # of noise: enough that a ReLU of an honest model lets every pixel's gradient through in one of them
SAME_LOGITS = 1e-3  # relative, above rounding


def blind_share(model: nn.Module, image: Tensor) -> float:
    """Share of the pixels that change the logits, and whose gradient is zero wherever it was measured; 0 if honest.

    Pixels of one image's channels are counted apart. Measured on noise, uniform in [0, 1], of the shape of `image`,
    CxHxW on the model's device: on real images a background that is always black has no gradient in honest models, too.
    A pixel that the model ignores, as one that it crops away, is not hidden.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((IMAGES, *image.shape), generator=generator).to(image)
    with torch.enable_grad():
        pixels = noise.clone().requires_grad_()
        logits = model(pixels)
        # Random weights, since a sum over classes is the same for every image behind a softmax.
        weights = torch.randn(logits.shape, generator=generator).to(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), pixels)
    dead = (gradient == 0).all(dim=0)  # CxHxW
    if not dead.any():
        return 0.0
    with torch.no_grad():
        changed = model(torch.where(dead, 1 - noise, noise))
    hidden = (changed - logits).norm() > SAME_LOGITS * logits.norm()
    return float(dead.float().mean()) if hidden else 0.0
