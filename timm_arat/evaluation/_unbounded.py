"""An attack without a bound to speak of, which must succeed (Athalye et al., arXiv:1802.00420, sec. 3.1)."""

import torch
from torch import Tensor, nn

from timm_arat.attacks import PGD
from timm_arat.evaluation._model import device_of
from timm_arat.evaluation._selection import Selection

IMAGES = 100  # enough for a warning, and nothing beside what PGD costs
STEPS = 20
# Plain grey is in reach of every image, whatever the norm of the threat.
UNBOUNDED = PGD(norm="linf", eps=0.5, steps=STEPS)


def unbounded_attack(model: nn.Module, images: Selection) -> tuple[PGD, Tensor]:
    """PGD at linf 0.5, and where in `images` to run it: N positions.

    They are some of PGD's images, evenly spread over them, whose label the model does not give to plain grey. Grey
    breaks each of them, so an attack that has it in reach and leaves one right has failed, not the model resisted.
    """
    chosen = images.pgd[:: max(1, -(-len(images.pgd) // IMAGES))]
    grey = torch.full_like(images.x[:1], 0.5).to(device_of(model))
    with torch.no_grad():
        answer = model(grey).argmax(1).cpu()
    return UNBOUNDED, chosen[images.y[chosen] != answer]
