"""Benchmarks into a document: `python -m benchmarks.speed a.json b.json --into docs/speed.md`.

Each section that a file holds goes between `<!-- speed-SECTION:begin -->` and its end (with two threads:
`speed-SECTION-2-threads`), with the machine and the command; the JSON and the plots lie in a folder called `speed`
beside the document. Numbers enter documents only so.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_arat.config import cli, read

from ._plot import plot_growth
from ._words import with_list
from .document import check_block, write_block

Json = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to render.

    Attributes:
        files: What `python -m benchmarks` wrote; a section that several hold is the last one's.
        into: The Markdown document.
    """

    files: tuple[str, ...]
    into: str = "docs/speed.md"


@cli
def main() -> None:
    """Render, and say what was written."""
    words = with_list("files", sys.argv[1:])
    options = read(Options, words, variants={}, prog="python -m benchmarks.speed", description="JSON into a document.")
    document = Path(options.into)
    folder = document.parent / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    for file in map(Path, options.files):
        result = json.loads(file.read_text())
        for section in TABLES.keys() & result.keys():
            block = f"speed-{section}" + f"-{result['threads']}-threads" * (result["threads"] > 1)
            check_block(document, block)
            lines = TABLES[section](result[section])
            if section == "memory":
                plot_growth(result[section]["growth"], folder / "growth.png")
                lines += ["", f"![Growth]({os.path.relpath(folder, document.parent)}/growth.png)"]
            write_block(document, block, [*lines, "", *_origin(result, section)])
        if file.parent.resolve() != folder.resolve():
            shutil.copyfile(file, folder / file.name)
    print(f"{document}, {folder}")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _times(section: Json, shape: str) -> str:
    low, high = section["spread"][shape]
    return f"{section['ratios'][shape]:.2f} ({low:.2f} - {high:.2f})"


def _step(section: Json) -> list[str]:
    lines: list[str] = []
    for name, each in {"ARAT": section, **section["methods"]}.items():
        rows = [
            [
                shape,
                f"{facts['size']}",
                f"{facts['batch']}",
                *(f"{facts['seconds'][side]:.3f}" for side in ("textbook", "textbook_eval", "ours", "ours_float32")),
                *(_times(part, shape) for part in (each, each["float32"], each["same_norm_mode"])),
            ]
            for shape, facts in each["shapes"].items()
        ]
        mean = [f"**{part['geometric_mean']:.2f}**" for part in (each, each["float32"], each["same_norm_mode"])]
        head = ["shape", "pixels", "batch"]
        head += ["textbook, s", "textbook, attack in eval mode, s", "ours, s", "ours in float32, s"]
        head += ["by default", "both in float32", "both in float32, attack in eval mode"]
        lines += ["", f"{name}:", "", *_table(head, [*rows, ["geometric mean", *[""] * 6, *mean]])]
    compiled = section["compiled"]
    rows = [[shape, _times(compiled, shape), f"{seconds:.0f}"] for shape, seconds in compiled["warm_up"].items()]
    head = ["shape", "ours (ARAT) over ours compiled", "warm-up, s"]
    lines += ["", "With `compile: on`, its warm-up from an empty cache:", "", *_table(head, rows)]
    return lines[1:]


def _attack(section: Json) -> list[str]:
    sides = list(dict.fromkeys(side for facts in section["shapes"].values() for side in facts["examples_per_second"]))
    rows = []
    parts = section, section["float32"]
    for shape, facts in section["shapes"].items():
        speeds = [f"{facts['examples_per_second'].get(side, float('nan')):.1f}" for side in sides]
        measured = shape in section["ratios"]
        rows.append([shape, *speeds, *(_times(part, shape) if measured else "-" for part in parts)])
    if section["geometric_mean"]:
        rows.append(["geometric mean", *[""] * len(sides), *(f"**{part['geometric_mean']:.2f}**" for part in parts)])
    heads = ["over the fastest library", "in float32"]
    table = _table(["shape", *(f"{side}, images/s" for side in sides), *heads], rows)
    lines = [*table, "", f"With all libraries: `{section['with_all']} --only attack`."]
    if facts := section.get("strength"):
        right = {side: f"{100 * count / facts['images']:.1f} %" for side, count in facts["robust"].items()}
        lines += [
            "",
            f"Right after it, of {facts['images']} images of {facts['data']} (eps {facts['eps']:g}), {facts['model']}: "
            f"{right['ours']} by ours as timed, {right['ours_float32']} by ours in float32.",
        ]
    return lines


def _evaluation(section: Json) -> list[str]:
    rows = [
        [
            side,
            *(f"{section[kind][side]:.1f}" for kind in ("cpu_seconds", "seconds")),
            f"{section['robust'][side]} of {section['images']}",
        ]
        for side in ("pyautoattack", "ours")
    ]
    return [
        f"{section['model']}, {section['images']} images in batches of {section['batch']}, "
        f"linf, eps {section['eps']:g}:",
        "",
        *_table(["evaluator", "of the processor, s", "by the clock, s", "robust images"], rows),
        "",
        f"Ratio of processor time **{section['cpu_ratio']:.2f}**, by the clock **{section['ratio']:.2f}**; the two "
        f"disagree on {len(section['disagree'])} images. How many times longer a plain pass of {section['batch']} "
        "images takes than ours, and than its convolutions alone:",
        "",
        *_table(
            ["pass", "ours", "convolutions alone"],
            [[name, f"{each['ours']:.2f}", f"{each['convolutions']:.2f}"] for name, each in section["passes"].items()],
        ),
    ]


def _limit(section: Json) -> list[str]:
    parts = {"ours": section, "ours_float32": section["float32"]}
    rows = [
        [
            shape,
            *(f"{facts['seconds'][f'{kind}{side}']:.3f}" for side in parts for kind in ("convolutions of ", "")),
            *(_times(part, shape) for part in parts.values()),
        ]
        for shape, facts in section["shapes"].items()
    ]
    rows.append(["geometric mean", *[""] * 4, *(f"**{part['geometric_mean']:.2f}**" for part in parts.values())])
    head = ["shape", "convolutions, s", "our step, s", "convolutions in float32, s", "our step in float32, s"]
    profile = [
        [shape, ", ".join(f"{name} {share:.0%}" for name, share in facts["profile"].items())]
        for shape, facts in section["shapes"].items()
    ]
    return [
        *_table([*head, "ratio", "in float32"], rows),
        "",
        "Shares of our step's time by torch's profiler:",
        "",
        *_table(["shape", "largest first"], profile),
    ]


def _memory(section: Json) -> list[str]:
    parts = section, section["checkpointing"], section["given_back"]
    rows = [
        [
            shape,
            *(f"{mib[side]:.0f}" for side in ("textbook", "ours", "ours_checkpointing")),
            *(f"{part['ratios'][shape]:.2f}" for part in parts),
        ]
        for shape, mib in section["mib"].items()
    ]
    rows.append(["geometric mean", "", "", "", *(f"**{part['geometric_mean']:.2f}**" for part in parts)])
    head = ["shape", "textbook, MiB", "ours, MiB", "ours, checkpointing, MiB"]
    lines = _table([*head, "ratio", "checkpointing", "both giving freed memory back"], rows)
    growth = [
        [batch, *(f"{sides[side]['mib']:.0f}" for side in ("textbook", "ours")),
         f"{sides['ours']['mib'] / sides['textbook']['mib']:.2f}"]
        for batch, sides in section["growth"]["batch"].items()
    ]  # fmt: skip
    head = [f"batch of {next(iter(section['mib']))}", "textbook, MiB", "ours, MiB", "ratio"]
    return [*lines, "", "As the batch grows:", "", *_table(head, growth)]


def _origin(result: Json, section: str) -> list[str]:
    """Where the numbers come from."""
    device = result["device"] or f"{result['cpu']}, {result['threads']} thread" + "s" * (result["threads"] > 1)
    versions = ", ".join(f"{name} {found}" for name, found in result["versions"].items())
    # The others run each thing once, since it is long.
    times = f"Medians of {result['rounds']} rounds" if section in ("step", "attack", "limit") else "One run of each"
    command = result["command"]
    if command.startswith("benchmark.py"):  # measured before this package had a place of its own
        command = f"python recipes/{command}"
    return [f"{times}; {device}; {versions}; {result['date'][:10]}.", "", "```bash", command, "```"]


TABLES: dict[str, Callable[[Json], list[str]]] = {
    "step": _step,
    "attack": _attack,
    "evaluation": _evaluation,
    "limit": _limit,
    "memory": _memory,
}

if __name__ == "__main__":
    main()
