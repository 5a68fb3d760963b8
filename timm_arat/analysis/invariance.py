"""How much of an image's features an attack leaves as they are (Table 5 of the ARAT paper)."""

import torch.nn.functional as F
from torch import Tensor

from .estimate import Estimate, estimate


def invariance(z: Tensor, z_adv: Tensor) -> Estimate:
    """The mean cosine of clean and adversarial features, NxC each, over the N images: 1 where nothing changes."""
    return estimate(F.cosine_similarity(z.double(), z_adv.double(), dim=1))
