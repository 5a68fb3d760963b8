"""What an evaluation measures: the settings that `evaluate`, its command and a training run share. Free of torch."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from timm_arat.attacks import PGD

AttackName = Literal["clean", "pgd", "autoattack"]
Norm = Literal["linf", "l2", "l1"]
ATTACK_NAMES: tuple[AttackName, ...] = get_args(AttackName)  # the weakest first


@dataclass(frozen=True)
class EvaluationConfig:
    """Threat, attacks, and the images they see.

    Attributes:
        norm: Norm of the threat, linf, l2 or l1; null is the training attack's in a run, and linf elsewhere.
        eps: Its bound in pixels of [0, 1]; null is the training attack's in a run; elsewhere 8/255 for linf, and an
            error for l2 and l1.
        attacks: What to run, of clean, pgd (20 steps) and autoattack. clean always runs: attacks start from what is
            right.
        pgd_images: PGD on this many test images, seeded and stratified; null is all. Clean accuracy is of these and of
            AutoAttack's.
        autoattack_images: AutoAttack on this many test images, likewise.
        batch_size: Images a batch. Random starts are drawn by batch, so it belongs to the result.
        seed: Of the choice of images and of every attack.
        fast: Fold BatchNorms away. Logits are equal up to rounding, so an image that is only just broken may differ, as
            under another seed; without it, AutoAttack is bitwise the official package.

    Raises:
        ValueError: a setting is out of its range.
    """

    norm: Norm | None = None
    eps: float | None = None
    attacks: tuple[AttackName, ...] = ATTACK_NAMES
    pgd_images: int | None = None
    autoattack_images: int | None = None
    batch_size: int = 250
    seed: int = 0
    fast: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.attacks, str):
            raise ValueError(f"attacks={self.attacks!r} is one word, wanted several: ({self.attacks!r},)")
        object.__setattr__(self, "attacks", tuple(self.attacks))
        unknown = set(self.attacks) - set(ATTACK_NAMES)
        if unknown:
            raise ValueError(
                f"attacks={self.attacks} has {', '.join(sorted(unknown))}; known: {', '.join(ATTACK_NAMES)}"
            )
        for name in ("batch_size", "pgd_images", "autoattack_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                attack = name.removesuffix("_images")
                way_out = f"; to leave {attack} out, name the others in attacks" if attack in ATTACK_NAMES else ""
                raise ValueError(f"{name}={value} is not at least 1{way_out}")
        if self.norm not in (None, *get_args(Norm)):
            raise ValueError(f"norm={self.norm!r} is not one of linf, l2, l1")
        if self.eps is not None:
            # PGD knows the range of each norm; while the norm is open, only what no norm allows is an error.
            PGD(norm=self.norm or "l1", eps=self.eps)

    def with_threat(self, norm: Norm = "linf", eps: float | None = None) -> "EvaluationConfig":
        """The same settings with `norm` and `eps`, in a run those of training, where none are given; never None after.

        An eps without a norm is of `norm`. A norm without an eps takes `eps` if it is `norm`; else the training bound
        says nothing of it.

        Raises:
            ValueError: the norm is another than `norm` and has no eps, or the two do not fit each other.
        """
        chosen = self.norm or norm
        bound = self.eps
        if bound is None and chosen == norm:
            bound = eps
        elif bound is None and eps is not None:
            raise ValueError(
                f"eps must be given for norm={chosen!r}: {eps:.4g} is the bound of the training attack's norm, {norm}"
            )
        return replace(self, norm=chosen, eps=PGD(norm=chosen, eps=bound).radius)  # PGD knows the default of linf
