"""ARAT: asymmetric representation-regularised adversarial training (Waseda et al., arXiv:2402.14648, ICLR 2025)."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import PGD, check, search
from ..losses import stop_grad_cosine, symmetric_cosine
from ..norm import batch_norms, norm_branch
from ..taps import paper_layers, tap, tap_dims
from ._base import Method, Terms, accuracy, precise
from ._early import Early
from ._features import Features
from ._frozen import Frozen
from ._split import split
from .configs import ARATConfig

# Logits NxK, and features NxC of every layer.
Outcome = tuple[Tensor, list[Tensor]]


class ARAT(Method):
    """a CE(f(x'), y) + (1 - a) CE(f_aux(x), y) + gamma / |S| sum_l [1 - cos(h_l(z'_l), sg(z_l))].

    x' is adversarial, x clean; f uses the main norms, f_aux the auxiliary ones; z_l are average-pooled features of
    layer l in S, h_l a predictor, sg the stop-gradient (paper, Sec. 3; the balance a is in the official code only).
    Each component can be switched off, which gives the rows of the paper's ablation.

    Args:
        model: A timm model; its norms are split in place unless they already are.
        config, attack, settings: see `Method`.
        teacher: For `anchor='teacher'`, a timm model whose features of x stand in the place of z; it is only used.

    Raises:
        ValueError: the model has no norm of the kind to split, a layer does not exist, a setting is out of range, or a
            teacher is missing, not wanted, or of another width where no predictor maps to it.
    """

    Config = ARATConfig
    clean_branch = "aux"
    config: ARATConfig
    balance: Tensor

    def __init__(
        self, model: nn.Module, config: ARATConfig | None = None, *, teacher: nn.Module | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, config, teacher=teacher, **kwargs)
        config = self.config
        self.needs_clean_accuracy = config.auto_balance
        self.layers = paper_layers(self.model) if tuple(config.layers) == ("paper",) else tuple(config.layers)
        dims = tap_dims(self.model, self.layers, in_chans=self.network.mean.shape[1])  # first: it changes nothing
        split(self.model, config.split_norm)
        self._shares_statistics = config.split_norm in ("none", "affine") and any(batch_norms(self.model))
        wanted = dims
        if teacher is not None:
            features = Features(teacher)
            wanted, self.teacher = {"last": features.width}, Frozen(features)
        if config.predictor == "none" and wanted != dims:
            raise ValueError(
                f"the teacher has {wanted['last']} features and the model {dims['last']}: write "
                "predictor='adversarial', which maps to the teacher's, or name a teacher of the same width"
            )
        pairs = zip(dims.values(), wanted.values(), strict=True) if config.predictor != "none" else ()
        self.predictors = nn.ModuleList(_Predictor(*pair) for pair in pairs)
        # A buffer, so that it is saved and resumed with the weights; 0.5 until the first epoch begins.
        self.register_buffer("balance", torch.tensor(0.5))

    @classmethod
    def needs_teacher(cls, config: Any) -> bool:
        return bool(config.anchor == "teacher")

    def set_clean_accuracy(self, accuracy: float) -> None:
        """Balance the two cross-entropies by it (official code: `train_acc`)."""
        self.balance.fill_(accuracy)

    def checked(self, attack: PGD) -> PGD:
        attack = super().checked(attack)
        if self.config.noisy_clean and attack.norm != "linf":
            raise ValueError(
                f"noisy_clean reproduces a bug of the official attack: it needs norm='linf', not {attack.norm!r}"
            )
        return attack

    def clean_logits(self, x: Tensor) -> Tensor:
        """Logits NxK of clean images in [0, 1] by the auxiliary branch (official code: `train_acc` of the clean BN)."""
        with self._branch("aux"):
            return self.network(x)

    def perturb(
        self, x: Tensor, y: Tensor, start: Tensor | None = None, attack: PGD | None = None
    ) -> tuple[Tensor, Tensor]:
        """As the base's, seen by the main branch; with `noisy_clean` the images come back shifted by the noise."""
        with self._branch("main"):
            if not self.config.noisy_clean:
                return super().perturb(x, y, start, attack)
            check(x, y, start)
            attack = self.checked(attack or self.attack)
            x = x + torch.empty_like(x).uniform_(-attack.radius, attack.radius)
            # Unclamped, as the official code: the centre of the ball may leave [0, 1], which `attack.perturb` refuses.
            return x, search(replace(attack, random_start=False), self.network, x, y).x_adv

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        if self._separable:
            clean, adv = self._pass(x, "aux"), self._pass(x_adv, "main")
        else:
            logits, joint = self._pass(torch.cat([x_adv, x]), "both")
            adv, clean = ((logits.chunk(2)[half], [feature.chunk(2)[half] for feature in joint]) for half in (0, 1))
        return self._terms(y, adv, self._anchored(x, clean))

    def forward(self, x: Tensor, y: Tensor, x_adv: Tensor | None = None) -> dict[str, Tensor]:
        """As the base's; the clean half is differentiated before the adversarial pass where nothing forbids it."""
        if not self._separable:
            return super().forward(x, y, x_adv)
        if x_adv is None:
            x, x_adv = self.perturb(x, y)
        clean = self._pass(x, "aux")
        early = Early(self._weights["ce_clean"] * F.cross_entropy(clean[0], y), self.parameters())
        clean = self._anchored(x, (clean[0].detach(), [feature.detach() for feature in clean[1]]))
        terms = self._terms(y, self._pass(x_adv, "main"), clean)
        return terms.as_dict(terms.loss("ce_adv", "invariance") + early.term())

    def _anchored(self, x: Tensor, clean: Outcome) -> Outcome:
        """`clean`, the outcome of the images `x`, with a teacher's features in the place of its own."""
        return (clean[0], [self.teacher(x)]) if self.config.anchor == "teacher" else clean

    def _terms(self, y: Tensor, adv: Outcome, clean: Outcome) -> Terms:
        (logits_adv, z_adv), (logits_clean, z) = adv, clean
        distances = [self._distance(i, *pair) for i, pair in enumerate(zip(z_adv, z, strict=True))]
        losses = {
            "ce_adv": F.cross_entropy(logits_adv, y),
            "invariance": torch.stack(distances).mean(),
            "ce_clean": F.cross_entropy(logits_clean, y),
        }
        log = {"balance": self.balance.clone()} if self.config.auto_balance else {}
        log |= {"acc_adv": accuracy(logits_adv, y), "acc_clean": accuracy(logits_clean, y)}
        return Terms(losses, self._weights, logits_adv, log)

    @property
    def _weights(self) -> dict[str, Tensor | float]:
        balance = self.balance if self.config.auto_balance else None
        adv, clean = (1.0, 1.0) if balance is None else (balance, 1 - balance)
        return {"ce_adv": adv, "invariance": self.config.weight, "ce_clean": clean}

    @property
    def _separable(self) -> bool:
        """Whether the adversarial images' gradients ask nothing of the clean images but their features' values.

        So it is where the anchor stands still and no norm takes statistics over both kinds of image. Then the
        clean half is done with first, which halves the activations that a step holds.
        """
        return self.config.anchor in ("clean", "teacher") and not self._shares_statistics

    def _pass(self, x: Tensor, branch: Literal["main", "aux", "both"]) -> Outcome:
        """Logits NxK and features NxC of every layer, in float32."""
        with self._branch(branch):
            logits, features = tap(self.model, self.network.normalize(x), self.layers)
        return precise(logits), [precise(feature) for feature in features.values()]

    def _branch(self, branch: Literal["main", "aux", "both"]) -> Any:
        if self.config.split_norm == "none":
            return nullcontext()
        return norm_branch(self.model, branch)

    def _distance(self, layer: int, z_adv: Tensor, z: Tensor) -> Tensor:
        """The invariance term of one layer: NxC, NxC to a scalar."""
        if self.training and len(self.predictors) and len(z) < 2:
            raise ValueError(
                "ARAT's predictor normalises over the images of a batch, and this one has a single image: take 2 or "
                "more a process (data.batch_size), or predictor='none' (method.predictor)"
            )
        h_adv = self.predictors[layer](z_adv) if self.config.predictor == "adversarial" else z_adv
        h = self.predictors[layer](z) if self.config.predictor == "clean" else z
        match self.config.anchor:
            case "clean" | "teacher":
                return stop_grad_cosine(h_adv, h)
            case "adversarial":
                return stop_grad_cosine(h, h_adv)
            case "both":
                return (stop_grad_cosine(h_adv, z) + stop_grad_cosine(h, z_adv)) / 2
            case "none":
                return symmetric_cosine(h_adv, h)


class _Predictor(nn.Sequential):
    """Bottleneck MLP C - C/4 - D on NxC features, in the place of SimSiam's predictor (arXiv:2011.10566, Sec. 3).

    D is C, or the width of a teacher.
    """

    def __init__(self, dim: int, out: int) -> None:
        hidden = max(1, dim // 4)
        super().__init__(
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
        )
