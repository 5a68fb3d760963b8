"""The result of an evaluation, and its JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from timm_arat.evaluation._autoattack import ATTACKS
from timm_arat.evaluation._masking import masking_warnings
from timm_arat.evaluation._results import check_format, check_types, reading, write
from timm_arat.evaluation._score import Score
from timm_arat.evaluation.config import Norm
from timm_arat.models._json import read_json

FORMAT = "timm_arat.robustness/1"
PLAIN = ("clean", "fgsm", "pgd", "unbounded")


@dataclass(frozen=True)
class ImageSet:
    """Which images: of the data set `name`, part `split`, `size` images in all.

    labels: hash of all labels in their order; results that share it are of the same images in the same order.
    autoattack_images: how many AutoAttack saw (None: all), chosen with `seed`, stratified by class if `stratified`;
    the positions themselves are in each Score. fingerprint: sum of a hash of each image seen, with label and position;
    shards add up. note: how its labels were matched with the model's classes, where a person should know.
    """

    name: str
    split: str
    size: int
    labels: str
    autoattack_images: int | None
    seed: int
    stratified: bool
    fingerprint: str
    note: str = ""


@dataclass(frozen=True)
class Robustness:
    """What `evaluate` measured. Nothing here is typed by a person; cards and tables are rendered from it.

    scores: by name, 'clean', 'fgsm', 'pgd', 'unbounded' (a check of the attack, not of the model: see `warnings`) and
    then AutoAttack's four, each after all before it, on the images right so far: the last one is AutoAttack's robust
    accuracy. attacks: by name, their settings. eps: in pixels of [0, 1].
    zero_gradient: images of PGD's that met a gradient of zeros. seconds: by name, summed over resumed parts and shards.
    fast: with BatchNorms folded, equal up to rounding; results that do not say so were measured without.
    blind: share of the pixels that the model looks at without a gradient, see `_blind`.
    class_names: the model's, where its configuration has them.
    """

    model: str
    weights: str
    data: ImageSet
    norm: Norm
    eps: float
    scores: dict[str, Score]
    attacks: dict[str, str]
    zero_gradient: int
    seed: int
    batch_size: int
    seconds: dict[str, float]
    versions: dict[str, str]
    device: str
    command: str
    fast: bool = False
    blind: float = 0.0
    class_names: tuple[str, ...] = ()

    @property
    def clean(self) -> Score | None:
        return self.scores.get("clean")

    @property
    def pgd(self) -> Score | None:
        """PGD with 20 steps; an image counts if it is right before and after."""
        return self.scores.get("pgd")

    @property
    def autoattack(self) -> Score | None:
        """Right after all four attacks of standard AutoAttack."""
        return self.scores.get(ATTACKS[-1])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Signs of masked gradients, computed from the scores."""
        return masking_warnings(self.scores, self.zero_gradient, self.blind)

    def to_json(self) -> dict[str, Any]:
        fields = {"format": FORMAT, **asdict(replace(self, scores={}))}
        del fields["scores"], fields["norm"], fields["eps"], fields["zero_gradient"]
        fields["threat"] = {"norm": self.norm, "eps": self.eps, "eps_text": eps_text(self.eps)}
        fields |= {name: self.scores[name].to_json() for name in PLAIN if name in self.scores}
        if not self.class_names:
            del fields["class_names"]
        if self.pgd:
            fields["pgd"]["zero_gradient"] = self.zero_gradient
        if self.autoattack:
            after = {name: self.scores[name].to_json() for name in ATTACKS}
            last = after[ATTACKS[-1]]
            fields["autoattack"] = {key: last[key] for key in ("accuracy", "n", "interval_95")} | {"after": after}
        return fields | {"warnings": list(self.warnings)}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Robustness":
        """Raises ValueError if these are not the fields that `to_json` gives."""
        check_format(fields.get("format"), FORMAT)
        kept = dict(fields)
        threat, after = kept.pop("threat"), kept.pop("autoattack", {"after": {}})["after"]
        plain = {name: kept.pop(name) for name in PLAIN if name in kept}
        scores = {name: Score.from_json(each) for name, each in (plain | after).items()}
        for derived in ("format", "warnings"):
            del kept[derived]
        data = dict(kept["data"])
        if "limit" in data:  # its name until 0.1
            data["autoattack_images"] = data.pop("limit")
        kept["data"] = ImageSet(**data)
        kept["class_names"] = tuple(kept.get("class_names", ()))
        zero_gradient = plain.get("pgd", {}).get("zero_gradient", 0)
        found = Robustness(scores=scores, norm=threat["norm"], eps=threat["eps"], zero_gradient=zero_gradient, **kept)
        for what in (found, found.data):
            check_types(what)
        return found

    def save(self, path: str | Path) -> None:
        """Write the JSON; an interrupted write leaves what was there before."""
        write(path, self.to_json())

    @staticmethod
    def load(path: str | Path) -> "Robustness":
        """Raises ValueError if the file is not a result that `save` wrote."""
        with reading(path, "evaluate"):
            return Robustness.from_json(read_json(path))


def eps_text(eps: float) -> str:
    """'8/255' for a whole number of grey levels, else the number."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 1e-6 else f"{eps:g}"


def merge(parts: Sequence[Robustness]) -> Robustness:
    """One result of the results of disjoint `indices`, one for each process; order does not matter.

    The images of a batch share their random starts, so shards and one process may differ by an image or two.

    Raises:
        ValueError: no parts, parts of different evaluations (naming the field), or an image in two of them.
    """
    if not parts:
        raise ValueError("nothing to merge: give the Robustness of each process")
    first, *rest = parts
    same = [
        name
        for name in first.__dataclass_fields__
        if name not in ("scores", "zero_gradient", "blind", "seconds", "device", "command")
    ]
    merged = first
    for part in rest:
        for name in same:
            here, there = getattr(first, name), getattr(part, name)
            if name == "data":
                here, there = replace(here, fingerprint=""), replace(there, fingerprint="")
            if here != there:
                raise ValueError(
                    f"these are parts of different evaluations: {name} is {here} in one and {there} in another"
                )
        merged = _both(merged, part)
    return merged


def _both(a: Robustness, b: Robustness) -> Robustness:
    return replace(
        a,
        data=replace(a.data, fingerprint=add_fingerprints(a.data.fingerprint, b.data.fingerprint)),
        scores={name: a.scores[name] + b.scores[name] for name in a.scores},
        zero_gradient=a.zero_gradient + b.zero_gradient,
        blind=max(a.blind, b.blind),
        seconds={name: a.seconds[name] + b.seconds[name] for name in a.seconds},
        device=", ".join(sorted({*a.device.split(", "), *b.device.split(", ")})),
        command=a.command if a.command == b.command else f"{a.command}\n{b.command}",
    )


def add_fingerprints(a: str, b: str) -> str:
    """Sum modulo 2**128 of two hexadecimal numbers: the order of the images does not matter."""
    return f"{(int(a, 16) + int(b, 16)) % 2**128:032x}"
