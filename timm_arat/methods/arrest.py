"""ARREST-style training: a standard network's representation kept under attack (Suzuki et al., arXiv:2308.16454)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import PGD
from ..losses import angular_distance
from ..modes import evaluating
from ..pixels import in_pixels
from ..taps import tap, tap_dims
from ._base import Method, Terms, accuracy, precise
from ._features import Features
from ._frozen import Frozen
from .configs import ARRESTConfig


class ARREST(Method):
    """CE(f(x'), y) + weight * mean_i d(phi_f(x'_i), phi_g(x_i)), d the angle between representations over pi.

    f starts as the standardly trained g, which stays as it is; phi are the average-pooled features of the last stage.
    Noisy replay: an image x'_i whose d is above `threshold` is replaced by x_i plus uniform noise, so that f does not
    learn from it while it is that far from g.

    This is the method in the paper's words only: no code is published, and its weight, its threshold and the kind and
    size of its noise are not known to us. The defaults here are our choice, so results are of an ARREST-style method
    (constants ours) and not of ARREST. Also ours: the distance for the replay is measured in eval mode, after the
    attack, which costs a pass of f and one of g; and the scale of d, in [0, 1].

    Args:
        teacher: g, a timm model with standardly trained weights; it is only used, see `Frozen`.
        model, config, attack, settings: see `Method`; `model` takes over the teacher's weights if `from_teacher`.

    Raises:
        ValueError: no teacher; or one of another architecture or width, which cannot give weights or representations.
    """

    Config = ARRESTConfig
    config: ARRESTConfig

    def __init__(
        self, model: nn.Module, config: ARRESTConfig | None = None, *, teacher: nn.Module | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, config, teacher=teacher, **kwargs)
        assert teacher is not None
        if self.config.from_teacher:
            self._take_over(in_pixels(teacher).model)
        features = Features(teacher)
        if (own := tap_dims(self.model)["last"]) != features.width:
            raise ValueError(
                f"ARREST compares representations of one width: the teacher has {features.width} features, the model "
                f"{own}"
            )
        self.teacher = Frozen(features)
        self._replayed = torch.zeros(())

    @classmethod
    def needs_teacher(cls, config: Any) -> bool:
        return True

    def perturb(
        self, x: Tensor, y: Tensor, start: Tensor | None = None, attack: PGD | None = None
    ) -> tuple[Tensor, Tensor]:
        """As the base's, with noise in the place of what has drifted too far from the teacher's representation."""
        x, x_adv = super().perturb(x, y, start, attack)
        with evaluating(self.network), torch.no_grad():
            drift = angular_distance(self._pass(x_adv)[1], self.teacher(x))  # N
        replay = drift > self.config.threshold
        self._replayed = replay.float().mean()  # for the log of the step
        noise = torch.empty_like(x).uniform_(-self.config.noise, self.config.noise)
        return x, torch.where(replay.view(-1, 1, 1, 1), (x + noise).clamp(0, 1), x_adv)

    def terms(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Terms:
        logits, features = self._pass(x_adv)
        losses = {
            "ce_adv": F.cross_entropy(logits, y),
            "angle": angular_distance(features, self.teacher(x)).mean(),
        }
        log = {"acc_adv": accuracy(logits, y), "replayed": self._replayed}
        return Terms(losses, {"ce_adv": 1.0, "angle": self.config.weight}, logits, log)

    def _pass(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits NxK and features NxD."""
        logits, features = tap(self.model, self.network.normalize(x))
        return precise(logits), precise(features["last"])

    def _take_over(self, teacher: nn.Module) -> None:
        try:
            self.model.load_state_dict(teacher.state_dict())
        except RuntimeError as error:
            raise ValueError(
                "ARREST starts from the teacher's weights, and these do not fit the model: give both the same name and "
                "kwargs, or set from_teacher=False and start from weights of the model's own (in a recipe, "
                f"model.pretrained): {str(error).splitlines()[-1].strip()}"
            ) from error
        # The weights are made for pixels that are normalised as the teacher's.
        mine: Any = self.model.pretrained_cfg
        theirs: Any = teacher.pretrained_cfg
        mine.update({key: theirs[key] for key in ("mean", "std")})
        self.network = in_pixels(self.model)
