"""The zoo's pages from the checkpoints' folders: `python -m benchmarks.zoo` writes docs/zoo.md and the README's table.

Our rows are read from hub_cards/*/results.json, the rivals from hub_cards/rivals.json, a file of facts with its source.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from timm_arat.config import cli, read
from timm_arat.evaluation import Paired, Robustness, compare, eps_text
from timm_arat.evaluation._score import cell
from timm_arat.hub import RobustRow, list_robust
from timm_arat.hub._files import TWIN
from timm_arat.models._json import read_config, read_json
from timm_arat.models._weights import CARDS, WHEEL_BYTES

from .document import write_block


@dataclass(frozen=True)
class Options:
    """Where to write.

    Attributes:
        into: The zoo's page; its picture lies beside it.
        readme: The README.
    """

    into: str = "docs/zoo.md"
    readme: str = "README.md"


@dataclass(frozen=True)
class Entry:
    """A checkpoint with what its folder says of it."""

    row: RobustRow
    config: dict[str, Any]
    results: Robustness

    @property
    def tag(self) -> str:
        return self.row.name.partition(".")[2]

    @property
    def threat(self) -> str:
        return f"{self.row.norm} {eps_text(self.row.eps)}"

    @property
    def side(self) -> int:
        """Pixels a side of its images."""
        return int(self.config["pretrained_cfg"]["input_size"][-1])

    @property
    def loads_by(self) -> str:
        """The package that knows the architecture."""
        ours = timm.models.model_entrypoint(self.config["architecture"]).__module__.startswith("timm_arat")
        return "timm_arat" if ours else "timm"

    @property
    def where(self) -> str:
        if self.row.bytes is None:
            return "the Hub"
        return "the wheel" if self.row.bytes <= WHEEL_BYTES else "a checkout"

    @property
    def total(self) -> float:
        """Clean and AutoAttack accuracy in %, the paper's measure."""
        return 100 * ((self.row.clean or 0.0) + (self.row.autoattack or 0.0))


def entries() -> list[Entry]:
    """The checkpoints that load, the best sum first for each tag."""
    found = [
        Entry(row, read_config(CARDS / row.name / "config.json"), Robustness.load(CARDS / row.name / "results.json"))
        for row in list_robust()
    ]
    return sorted(found, key=lambda entry: (entry.tag, -entry.total))


def page(found: list[Entry]) -> list[str]:
    """Markdown: for each tag a table of ours and of the rivals; then ours beside their twins."""
    rivals = read_json(CARDS / "rivals.json")
    lines: list[str] = []
    for tag in dict.fromkeys(entry.tag for entry in found):
        here = [entry for entry in found if entry.tag == tag]
        lines += [
            f"## {here[0].row.data}, {here[0].threat}",
            "",
            "| checkpoint | clean | PGD-20 | AutoAttack | clean + AutoAttack | weights | image | knows it | ships in |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(entry) for entry in here]
        if tag in rivals:
            lines += ["", f"For comparison ({rivals[tag]['source']}; {rivals[tag]['from']}):", ""]
            lines += ["| model | clean | AutoAttack | clean + AutoAttack |", "|---|---|---|---|"]
            for each in rivals[tag]["rows"]:
                clean, robust = each["clean"], each["autoattack"]
                lines.append(f"| {each['name']} | {clean} | {robust} | {clean + robust:.2f} |")
        lines.append("")
    return lines + twins(found)


def twins(found: list[Entry]) -> list[str]:
    """A table of the checkpoints that have a twin, the same backbone by another method, paired on the same images."""
    lines = [
        "## Beside their twins",
        "",
        "The same backbone by another method, on the same images: the checkpoint's accuracy less its twin's, with the",
        "p-value of McNemar's exact test. How long each was trained is on the card. What is missing here has no twin.",
        "",
        "| checkpoint | twin | clean | PGD-20 | AutoAttack |",
        "|---|---|---|---|---|",
    ]
    for entry in found:
        there = CARDS / entry.row.name / TWIN
        if there.is_file():
            twin = Robustness.load(there)
            pairs = compare(entry.results, twin)
            cells = [_paired(pairs[name]) if name in pairs else "-" for name in ("clean", "pgd", "autoattack")]
            lines.append(f"| {entry.row.name} | {twin.model} | {' | '.join(cells)} |")
    return lines


def _paired(pair: Paired) -> str:
    return f"{100 * pair.difference:+.1f} (p = {pair.p_value:.2g}, n={pair.n})"


def _line(entry: Entry) -> str:
    row, results = entry.row, entry.results
    cells = [
        f"[{row.name}](../hub_cards/{row.name}/README.md)",
        *map(cell, (results.clean, results.pgd, results.autoattack)),
        f"{entry.total:.1f}",
        "-" if row.weights is None else f"{row.weights:.2f} M",
        f"{entry.side} px",
        entry.loads_by,
        entry.where,
    ]
    return f"| {' | '.join(cells)} |"


def readme(found: list[Entry]) -> list[str]:
    """The README's table: name, what it is for, the two accuracies."""
    lines = ["| Name | Data, threat | image | clean | AutoAttack | Weights |", "|---|---|---|---|---|---|"]
    for entry in found:
        weights = "" if entry.row.weights is None else f"{entry.row.weights:.1f} M, "
        robust = cell(entry.results.autoattack)
        lines.append(
            f"| [`{entry.row.name}`](hub_cards/{entry.row.name}/README.md) | {entry.row.data}, {entry.threat} "
            f"| {entry.side} px | {cell(entry.results.clean)} | {robust} | {weights}in {entry.where} |"
        )
    return lines


def draw(found: list[Entry], path: Path) -> None:
    """Clean against AutoAttack accuracy, a panel a tag; rivals are hollow."""
    from matplotlib.figure import Figure

    rivals = read_json(CARDS / "rivals.json")
    tags = list(dict.fromkeys(entry.tag for entry in found))
    figure = Figure(figsize=(5 * len(tags), 5), layout="constrained")
    for axis, tag in zip(figure.subplots(1, len(tags), squeeze=False)[0], tags, strict=True):
        here = [entry for entry in found if entry.tag == tag]
        for number, entry in enumerate(here):
            low, high = entry.results.autoattack.interval if entry.results.autoattack else (0, 0)
            clean, robust = 100 * (entry.row.clean or 0.0), 100 * (entry.row.autoattack or 0.0)
            bars = [[robust - 100 * low], [100 * high - robust]]
            name = entry.row.name.partition(".")[0]
            axis.errorbar(clean, robust, yerr=bars, marker="o", capsize=3, linestyle="", color=f"C{number}", label=name)
        for number, each in enumerate(rivals.get(tag, {"rows": []})["rows"], len(here)):
            name = each["name"].partition(" (")[0]
            axis.plot(each["clean"], each["autoattack"], "o", mfc="none", color=f"C{number}", label=name)
        # Names below the picture: near points, names in it would lie on each other.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="x-small")
        axis.set_title(f"{here[0].row.data}, {here[0].threat}", parse_math=False, fontsize="medium")
        axis.set_xlabel("clean accuracy in %")
        axis.margins(0.1, 0.15)
    figure.axes[0].set_ylabel("AutoAttack accuracy in %")
    figure.savefig(path, dpi=110)


@cli
def main() -> None:
    """Write both documents and the picture."""
    options = read(Options, variants={}, prog="python -m benchmarks.zoo", description="The zoo's pages.")
    found = entries()
    write_block(Path(options.into), "zoo", page(found))
    write_block(Path(options.readme), "zoo", readme(found))
    draw(found, Path(options.into).with_suffix(".png"))
    print(f"{options.into} and {options.readme}: {len(found)} checkpoints")


if __name__ == "__main__":
    main()
