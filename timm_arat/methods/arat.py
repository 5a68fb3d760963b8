"""ARAT: asymmetric representation-regularised adversarial training (Waseda et al., arXiv:2402.14648, ICLR 2025)."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import search
from ..losses import stop_grad_cosine, symmetric_cosine
from ..norm import batch_norms, check_split_norm, convert_split_norm, norm_branch
from ..taps import paper_layers, tap, tap_dims
from ._base import Method, accuracy, precise
from ._early import Early
from .configs import ARATConfig


class ARAT(Method):
    """a CE(f(x'), y) + (1 - a) CE(f_aux(x), y) + gamma / |S| sum_l [1 - cos(h_l(z'_l), sg(z_l))].

    x' is adversarial, x clean; f uses the main norms, f_aux the auxiliary ones; z_l are average-pooled features of
    layer l in S, h_l a predictor, sg the stop-gradient (paper, Sec. 3; the balance a is in the official code only).
    Each component can be switched off, which gives the rows of the paper's ablation.

    Args:
        model: A timm model; its norms are split in place unless they already are.
        config: Settings; `settings` given by name take precedence.

    Raises:
        ValueError: the model has no norm of the kind to split, a layer does not exist, or a setting is out of range.
    """

    config: ARATConfig
    balance: Tensor

    def __init__(self, model: nn.Module, config: ARATConfig | None = None, **settings: Any) -> None:
        config = replace(config or ARATConfig(), **settings)
        super().__init__(model, config)
        self.needs_clean_accuracy = config.auto_balance
        self.layers = paper_layers(self.model) if tuple(config.layers) == ("paper",) else tuple(config.layers)
        if config.split_norm != "none":
            try:
                convert_split_norm(self.model, norms="all" if config.split_norm == "all" else None)
            except ValueError as error:
                raise ValueError(
                    f"split_norm={config.split_norm!r}: {error}; here split_norm='all' or 'none'"
                ) from error
        self._shares_statistics = config.split_norm == "none" and any(True for _ in batch_norms(self.model))
        dims = tap_dims(self.model, self.layers, in_chans=self.pixels.mean.shape[1])
        self.predictors = nn.ModuleList(_Predictor(dim) for dim in dims.values() if config.predictor != "none")
        # A buffer, so that it is saved and resumed with the weights; 0.5 until the first epoch begins.
        self.register_buffer("balance", torch.tensor(0.5))

    def begin_epoch(self, epoch: int, clean_accuracy: float | None = None) -> None:
        super().begin_epoch(epoch)
        if clean_accuracy is not None:
            self.balance.fill_(clean_accuracy)

    def clean_logits(self, x: Tensor) -> Tensor:
        """Logits NxK of clean images in [0, 1] by the auxiliary branch (official code: `train_acc` of the clean BN)."""
        with self._branch("aux"):
            return self.pixels(x)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        if self.config.noisy_clean:
            x = x + torch.empty_like(x).uniform_(-self.attack.radius, self.attack.radius)
        found = self._perturb(x, y)
        weight_adv, weight_clean = (self.balance, 1 - self.balance) if self.config.auto_balance else (1, 1)
        if self._separable:
            logits_clean, z = self._pass(x, "aux")
            ce_clean = F.cross_entropy(logits_clean, y)
            clean = Early(weight_clean * ce_clean, self.parameters())
            logits_adv, z_adv = self._pass(found.x_adv, "main")
        else:
            logits, joint = self._pass(torch.cat([found.x_adv, x]), "both")
            logits_adv, logits_clean = logits.chunk(2)
            z_adv, z = ([feature.chunk(2)[half] for feature in joint] for half in (0, 1))
            ce_clean = F.cross_entropy(logits_clean, y)
            clean = None
        ce_adv = F.cross_entropy(logits_adv, y)
        invariance = torch.stack([self._distance(i, *pair) for i, pair in enumerate(zip(z_adv, z, strict=True))])
        loss = weight_adv * ce_adv + self.config.weight * invariance.mean()
        loss = loss + (weight_clean * ce_clean if clean is None else clean.term())
        return {
            "loss": loss,
            "output": logits_adv,
            "ce_adv": ce_adv.detach(),
            "ce_clean": ce_clean.detach(),
            "invariance": invariance.detach().mean(),
            "balance": self.balance.clone(),
            "acc_adv": accuracy(logits_adv, y),
            "acc_clean": accuracy(logits_clean, y),
            "zero_grad": found.zero_grad.float().mean(),
        }

    @property
    def _separable(self) -> bool:
        """Whether the adversarial images' gradients ask nothing of the clean images but their features' values.

        So it is where the clean features stand still and no norm takes statistics over both kinds of image. Then the
        clean half is done with first, which halves the activations that a step holds.
        """
        return self.config.anchor == "clean" and not self._shares_statistics

    def _pass(self, x: Tensor, branch: Literal["main", "aux", "both"]) -> tuple[Tensor, list[Tensor]]:
        """Logits NxK and features NxC of every layer, in float32."""
        with self._branch(branch):
            logits, features = tap(self.model, self.pixels.normalize(x), self.layers)
        return precise(logits), [precise(feature) for feature in features.values()]

    def _perturb(self, x: Tensor, y: Tensor) -> Any:
        with self._branch("main"):
            if self.config.noisy_clean:
                # Unclamped, as the official code: the centre may leave [0, 1].
                return search(replace(self.attack, random_start=False), self.pixels, x, y)
            return self.attack.perturb(self.pixels, x, y)

    def _branch(self, branch: Literal["main", "aux", "both"]) -> Any:
        if self.config.split_norm == "none":
            return nullcontext()
        check_split_norm(self.model)
        return norm_branch(self.model, branch)

    def _distance(self, layer: int, z_adv: Tensor, z: Tensor) -> Tensor:
        """The invariance term of one layer: NxC, NxC to a scalar."""
        h_adv = self.predictors[layer](z_adv) if self.config.predictor == "adversarial" else z_adv
        h = self.predictors[layer](z) if self.config.predictor == "clean" else z
        match self.config.anchor:
            case "clean":
                return stop_grad_cosine(h_adv, h)
            case "adversarial":
                return stop_grad_cosine(h, h_adv)
            case "both":
                return (stop_grad_cosine(h_adv, z) + stop_grad_cosine(h, z_adv)) / 2
            case "none":
                return symmetric_cosine(h_adv, h)


class _Predictor(nn.Sequential):
    """Bottleneck MLP C - C/4 - C on NxC features, in the place of SimSiam's predictor (arXiv:2011.10566, Sec. 3)."""

    def __init__(self, dim: int) -> None:
        hidden = max(1, dim // 4)
        super().__init__(
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
        )
