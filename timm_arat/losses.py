"""Loss terms of the methods as pure functions of tensors. N samples, K classes, D features."""

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
