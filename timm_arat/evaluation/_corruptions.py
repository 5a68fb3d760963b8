"""The result of an evaluation on common corruptions, its JSON, errors and table."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ..models._json import read_json
from ._results import check_format, check_types, reading, write
from ._robustness import ImageSet
from ._score import Score
from ._table import aligned

FORMAT = "timm_arat.corruptions/1"


@dataclass(frozen=True)
class Corrupted:
    """What is right of the images under one corruption at one severity, whether or not it is right without."""

    corruption: str
    severity: int
    score: Score


@dataclass(frozen=True)
class Corruptions:
    """What `evaluate_corruptions` measured: every corruption at every severity, on the same images."""

    model: str
    weights: str
    data: ImageSet
    size: tuple[int, int]
    clean: Score
    corrupted: tuple[Corrupted, ...]
    seed: int
    versions: dict[str, str]
    device: str
    command: str

    @property
    def severities(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(each.severity for each in self.corrupted))

    @property
    def errors(self) -> dict[str, float]:
        """Share of wrong images by corruption, the mean over the severities."""
        names = dict.fromkeys(each.corruption for each in self.corrupted)
        return {
            name: mean(1 - each.score.accuracy for each in self.corrupted if each.corruption == name) for name in names
        }

    @property
    def mean_error(self) -> float:
        """The mean of `errors`: the mean corruption error, not normalised."""
        return mean(self.errors.values())

    def relative_to(self, baseline: "Corruptions") -> dict[str, float]:
        """CE by corruption: the errors, summed over severities, over those of `baseline`. 1: as many errors as it has.

        The paper's equation 1 in words; its baseline is AlexNet. Their mean is `mce`.

        Raises:
            ValueError: `baseline` was measured on other images, corruptions, severities or noise, or has no error.
        """
        check_baseline(
            baseline,
            labels=self.data.labels,
            positions=self.clean.indices,
            corruptions=tuple(self.errors),
            severities=self.severities,
            seed=self.seed,
        )
        return {name: error / baseline.errors[name] for name, error in self.errors.items()}

    def mce(self, baseline: "Corruptions") -> float:
        """Mean corruption error, normalised by `baseline`: the mean of `relative_to`, whose errors it raises."""
        return mean(self.relative_to(baseline).values())

    def to_json(self) -> dict[str, Any]:
        """`errors` and `mean_error` stand there for readers; `load` computes them again."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "format": FORMAT,
            **fields,
            "data": asdict(self.data),
            "clean": self.clean.to_json(),
            "corrupted": [{**vars(each), "score": each.score.to_json()} for each in self.corrupted],
            "errors": self.errors,
            "mean_error": self.mean_error,
        }

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        write(path, self.to_json())

    @staticmethod
    def load(path: str | Path) -> "Corruptions":
        """ValueError if the file is not what `save` wrote."""
        with reading(path, "evaluation.evaluate_corruptions"):
            fields = read_json(path)
            check_format(fields.pop("format", None), FORMAT)
            del fields["errors"], fields["mean_error"]
            fields["data"] = ImageSet(**fields["data"])
            fields["size"] = tuple(fields["size"])
            fields["clean"] = Score.from_json(fields["clean"])
            fields["corrupted"] = tuple(
                Corrupted(**{**each, "score": Score.from_json(each["score"])}) for each in fields["corrupted"]
            )
            found = Corruptions(**fields)
            for what in (found, found.data, *found.corrupted):
                check_types(what)
            return found


def check_baseline(
    baseline: Corruptions,
    *,
    labels: str,
    positions: tuple[int, ...],
    corruptions: tuple[str, ...],
    severities: tuple[int, ...],
    seed: int,
) -> None:
    """ValueError unless `baseline` was measured alike, on the same images, and has errors to take a share of."""
    for what, ours, theirs in (
        ("data set (by its labels)", labels, baseline.data.labels),
        ("images", positions, baseline.clean.indices),
        ("corruptions", corruptions, tuple(baseline.errors)),
        ("severities", severities, baseline.severities),
        ("seed", seed, baseline.seed),
    ):
        if ours != theirs:
            shown = f" ({theirs} there, {ours} here)" if len(f"{ours}{theirs}") < 200 else ""
            raise ValueError(f"the baseline {baseline.model} was measured with other {what}{shown}: measure both alike")
    for name, error in baseline.errors.items():
        if not error:
            raise ValueError(
                f"the baseline {baseline.model} makes no error under {name}, so no share of it can be taken: measure "
                "on more images, or take a weaker baseline"
            )


def corruptions_table(result: Corruptions, baseline: Corruptions | None = None) -> str:
    """Plain text: a row a corruption, accuracy in % at each severity and its mean; with a baseline also CE in %.

    Below it mean corruption error and mCE in %, and how wide a number's 95 % interval is at most.
    """
    relative = result.relative_to(baseline) if baseline else {}
    accuracy = {(each.corruption, each.severity): each.score.accuracy for each in result.corrupted}
    rows = [("corruption", *map(str, result.severities), "mean", *(["CE"] if baseline else []))]
    for name, error in result.errors.items():
        numbers = [100 * accuracy[name, severity] for severity in result.severities]
        numbers += [100 * (1 - error), *([100 * relative[name]] if baseline else [])]
        rows.append((name, *(f"{number:.1f}" for number in numbers)))
    by_severity = [mean(accuracy[name, severity] for name in result.errors) for severity in result.severities]
    last = [*by_severity, 1 - result.mean_error, *([result.mce(baseline)] if baseline else [])]
    rows.append(("mean", *(f"{100 * number:.1f}" for number in last)))
    low, high = result.clean.interval
    widest = max(score.interval[1] - score.interval[0] for score in (each.score for each in result.corrupted))
    images, height, width = f"{result.data.name} {result.data.split}".strip(), *result.size
    lines = [
        f"{result.model}: right in % under corruptions by severity, {result.clean.n} images of {images}, "
        f"{height}x{width} pixels, seed {result.seed}",
        *aligned(rows, right=True),
        f"unchanged {100 * result.clean.accuracy:.1f} \u00b1 {50 * (high - low):.1f}; each number by severity is of "
        f"n={result.clean.n} images, \u00b1 {50 * widest:.1f} at most",
        f"mean corruption error {100 * result.mean_error:.1f} %, not normalised",
    ]
    if baseline:
        other = " on images of {}x{} pixels".format(*baseline.size) * (baseline.size != result.size)
        lines.append(
            f"mCE {100 * result.mce(baseline):.1f} %: errors relative to those of {baseline.model}{other} "
            "(100: as many)"
        )
    if result.data.note:
        lines.append(result.data.note)
    return "\n".join(lines)
