"""The result of several threats, its JSON, table and picture."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..models._json import read_json
from ._results import check_format, check_types, reading, write
from ._robustness import ImageSet, eps_text
from ._score import Score
from .config import Norm

FORMAT = "timm_arat.threats/1"


@dataclass(frozen=True)
class Threat:
    """What is left right within eps (pixels of [0, 1]) of a norm. attacked: images that had to be attacked here."""

    norm: Norm
    eps: float
    score: Score
    attacked: int
    seconds: float

    @property
    def words(self) -> str:
        return f"{self.norm} {eps_text(self.eps) if self.norm == 'linf' else f'{self.eps:g}'}"


@dataclass(frozen=True)
class Threats:
    """What `evaluate_threats` measured: `attack` (autoattack or pgd) at every threat, of one norm by rising eps."""

    model: str
    weights: str
    data: ImageSet
    attack: str
    version: str
    clean: Score
    threats: tuple[Threat, ...]
    seed: int
    batch_size: int
    versions: dict[str, str]
    device: str
    command: str

    @property
    def worst(self) -> Score:
        """Right under every one of the threats; its `per_class` is empty."""
        every = (each.score.correct for each in self.threats)
        return Score(self.clean.indices, tuple(map(all, zip(*every, strict=True))), ())

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "format": FORMAT,
            **fields,
            "data": asdict(self.data),
            "clean": self.clean.to_json(),
            "threats": [{**vars(each), "score": each.score.to_json()} for each in self.threats],
            "worst": self.worst.to_json(),
        }

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        write(path, self.to_json())

    @staticmethod
    def load(path: str | Path) -> "Threats":
        """ValueError if the file is not what `save` wrote."""
        with reading(path, "evaluation.evaluate_threats"):
            fields = read_json(path)
            check_format(fields.pop("format", None), FORMAT)
            del fields["worst"]
            fields["data"] = ImageSet(**fields["data"])
            fields["clean"] = Score.from_json(fields["clean"])
            fields["threats"] = tuple(
                Threat(**{**each, "score": Score.from_json(each["score"])}) for each in fields["threats"]
            )
            found = Threats(**fields)
            for what in (found, found.data, *found.threats):
                check_types(what)
            return found


def threats_table(result: Threats) -> str:
    """Plain text: a row a threat, accuracy in % with half of its 95 % interval, and how many images were attacked."""
    rows = [("unchanged", result.clean, ""), *((each.words, each.score, str(each.attacked)) for each in result.threats)]
    if len({each.norm for each in result.threats}) > 1:
        rows.append(("all of them", result.worst, ""))
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'threat':{width}}  {'right in %':>14}  attacked", "-" * (width + 26)]
    for name, score, attacked in rows:
        low, high = score.interval
        lines.append(
            f"{name:{width}}  {100 * score.accuracy:6.1f} \u00b1 {50 * (high - low):4.1f}   {attacked:>7}".rstrip()
        )
    title = f"{result.model}: {result.version} on {result.clean.n} images of {result.data.name} {result.data.split}"
    return "\n".join([title.rstrip(), *lines])


def draw(result: Threats, path: Path) -> None:
    """A picture of the accuracy over eps, one panel a norm; ImportError without matplotlib."""
    from matplotlib.figure import Figure

    norms = list(dict.fromkeys(each.norm for each in result.threats))
    figure = Figure(figsize=(4 * len(norms), 3.4), layout="constrained")
    for axis, norm in zip(figure.subplots(1, len(norms), squeeze=False, sharey=True)[0], norms, strict=True):
        scale = 255 if norm == "linf" else 1
        points = [(0.0, result.clean), *((each.eps, each.score) for each in result.threats if each.norm == norm)]
        heights = [100 * score.accuracy for _, score in points]
        low, high = zip(*(score.interval for _, score in points), strict=True)
        bars = [[h - 100 * x for h, x in zip(heights, low, strict=True)],
                [100 * x - h for h, x in zip(heights, high, strict=True)]]  # fmt: skip
        axis.errorbar([scale * eps for eps, _ in points], heights, yerr=bars, marker="o", capsize=3)
        axis.set_xlabel(f"{norm} eps{' in 255ths' if scale == 255 else ''}")
        axis.set_ylim(0, 100)
    figure.axes[0].set_ylabel(f"right in %\n({result.attack}, n={result.clean.n})")
    figure.suptitle(result.model, parse_math=False, fontsize="medium")
    figure.savefig(path, dpi=110)
