"""Signs that a model hides its gradients rather than resists (Athalye et al., arXiv:1802.00420, sec. 3.1)."""

from timm_arat.evaluation._compare import mcnemar
from timm_arat.evaluation._score import Score

ZERO_SHARE = 0.01
SQUARE_SHARE = 0.002  # the threshold of AutoAttack's own flag
SIGNIFICANT = 0.05
UNBOUNDED_SHARE = 0.05
GAP = 0.1  # of PGD over AutoAttack; 2 to 7 points are usual in adversarially trained networks


def masking_warnings(scores: dict[str, Score], zero_gradient: int, blind: float = 0.0) -> tuple[str, ...]:
    """The signs found in these scores, each one sentence; empty for an honest model.

    scores: by the names of `Robustness.scores`; what was not run is not judged. zero_gradient: images, out of those
    that PGD attacked, for which at least one step had no gradient at all. blind: share
    of the pixels whose gradient is hidden.
    """
    found = (
        _zero_gradients(scores, zero_gradient),
        _blind_pixels(blind),
        _unbounded_fails(scores),
        _more_steps_weaker(scores),
        _autoattack_far_below(scores),
        _autoattack_above(scores),
        _square_stronger(scores),
    )
    return tuple(each for each in found if each)


def _zero_gradients(scores: dict[str, Score], zero_gradient: int) -> str | None:
    if "pgd" not in scores or "clean" not in scores:
        return None
    clean = scores["clean"].by_index()
    attacked = sum(clean[index] for index in scores["pgd"].indices)
    if zero_gradient <= ZERO_SHARE * attacked:
        return None
    return (
        f"{zero_gradient} of {attacked} attacked images ({zero_gradient / attacked:.1%}) met a gradient of zeros: "
        "gradient attacks cannot see this model, so its robust accuracy is an upper bound"
    )


def _blind_pixels(blind: float) -> str | None:
    if not blind:
        return None
    return (
        f"{blind:.1%} of the pixels change the logits and have no gradient: attacks by gradient leave them alone, so "
        "robust accuracy is an upper bound"
    )


def _unbounded_fails(scores: dict[str, Score]) -> str | None:
    if "unbounded" not in scores or "clean" not in scores:
        return None
    clean, after = scores["clean"].by_index(), scores["unbounded"]
    attacked, left = sum(clean[index] for index in after.indices), sum(after.correct)
    if left <= max(1, UNBOUNDED_SHARE * attacked):
        return None
    return (
        f"PGD at linf 0.5 leaves {left} of {attacked} images right that plain grey, in its reach, breaks: it does not "
        "see how this model decides, so its robust accuracy is an upper bound"
    )


def _more_steps_weaker(scores: dict[str, Score]) -> str | None:
    if "fgsm" not in scores or "pgd" not in scores or not scores["pgd"].n:
        return None
    paired = mcnemar(scores["fgsm"], scores["pgd"])
    if not (paired.only_b > paired.only_a and paired.p_value < SIGNIFICANT):
        return None
    return (
        f"one step breaks {paired.only_b} images that 20 steps leave ({paired.only_a} the other way, "
        f"p = {paired.p_value:.2g}): more steps should never be weaker, the gradients mislead"
    )


def _autoattack_far_below(scores: dict[str, Score]) -> str | None:
    if not _both_ran(scores):
        return None
    paired = mcnemar(scores["pgd"], scores["square"])
    if not (paired.difference > GAP and paired.p_value < SIGNIFICANT):
        return None
    return (
        f"AutoAttack is {100 * paired.difference:.1f} points below PGD on the same {paired.n} images (p = "
        f"{paired.p_value:.2g}): gradients are masked where PGD looks; compare models by AutoAttack only"
    )


def _autoattack_above(scores: dict[str, Score]) -> str | None:
    if not _both_ran(scores):
        return None
    paired = mcnemar(scores["square"], scores["pgd"])
    if not (paired.only_a > paired.only_b and paired.p_value < SIGNIFICANT):
        return None
    return (
        f"PGD breaks {paired.only_a} images that AutoAttack leaves ({paired.only_b} the other way, p = "
        f"{paired.p_value:.2g}): AutoAttack is the stronger of the two, so its number is an upper bound here; attack "
        "this model adaptively"
    )


def _both_ran(scores: dict[str, Score]) -> bool:
    """Whether PGD and AutoAttack saw an image that is the same."""
    return {"pgd", "square"} <= scores.keys() and bool({*scores["pgd"].indices} & {*scores["square"].indices})


def _square_stronger(scores: dict[str, Score]) -> str | None:
    if "square" not in scores or "fab-t" not in scores:
        return None
    left, after = scores["fab-t"], scores["square"]
    broken = sum(left.correct) - sum(after.correct)
    # A single image is no sign: in a small sample it is a large share.
    if broken <= max(1, SQUARE_SHARE * after.n):
        return None
    return (
        f"Square, which uses no gradient, breaks {broken} of the {sum(left.correct)} images that the gradient attacks "
        "left: run it with more queries, or attack this model adaptively"
    )
