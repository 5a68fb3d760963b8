"""Loss terms of the methods as pure functions of tensors. N samples, K classes, D features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def stop_grad_cosine(online: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cos(online, sg(target)) over samples: NxD, NxD to a scalar in [0, 2].

    The asymmetric half of the invariance regulariser (ARAT, arXiv:2402.14648, Sec. 3): `target`, the clean
    representation, is a constant, so it is not pulled towards the corrupted one.
    """
    return (1 - F.cosine_similarity(online, target.detach(), dim=-1)).mean()


def symmetric_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean of 1 - cos(a, b) over samples, gradient to both: NxD, NxD to a scalar in [0, 2].

    The naive siamese regulariser that ARAT argues against (arXiv:2402.14648, Eq. 3), kept for its ablation.
    """
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()


def prediction_divergence(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """Mean of KL(p || p_adv) over samples, p = softmax(logits), gradient to both: NxK, NxK to a scalar, at least 0.

    The regulariser of TRADES (arXiv:1901.08573, Alg. 1) as the authors' code has it: p is no constant.
    """
    return F.kl_div(logits_adv.log_softmax(-1), logits.log_softmax(-1), reduction="batchmean", log_target=True)


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """Labels as shares of the K classes of `logits`: classes N or shares NxK to NxK, in the type of `logits`."""
    return (y if y.ndim == 2 else F.one_hot(y, logits.shape[-1])).to(logits.dtype)


def jensen_shannon(logits: Sequence[Tensor]) -> Tensor:
    """Jensen-Shannon divergence of V predictions, mean over samples: V times NxK to a scalar in [0, log V].

    The mean over predictions p of KL(p || m) with their mixture m, clamped from below at 1e-7 so that its logarithm is
    finite (as in AugMix, arXiv:1912.02781, and DAJAT's code). Gradient to all.
    """
    logs = [each.log_softmax(-1) for each in logits]
    mixture = torch.stack([each.exp() for each in logs]).mean(0).clamp(1e-7, 1).log()
    return torch.stack([F.kl_div(mixture, each, reduction="batchmean", log_target=True) for each in logs]).mean()


def angular_distance(a: Tensor, b: Tensor) -> Tensor:
    """The angle between two representations over pi: NxD, NxD to N in [0, 1]; gradient to both.

    The cosine is clamped to 1e-6 from 1, where the angle's slope is infinite: closer ones get no gradient.
    """
    bound = 1 - 1e-6
    return F.cosine_similarity(a, b, dim=-1).clamp(-bound, bound).acos() / torch.pi
