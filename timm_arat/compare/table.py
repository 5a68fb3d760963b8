"""Results of a comparison as rows: accuracies and costs over seeds, as Markdown, JSON and CSV."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.costs import Passes
from ..evaluation import Paired, Score, eps_text
from ..evaluation._score import cell
from . import progress
from .outcome import ATTACKS, COSTS, HELD_OUT, Line, against, clock, curves, strongest, sums


def markdown(lines: Sequence[Line], reference: str) -> str:
    """The table, and below it what its numbers are."""
    first, robust = _reference(lines, reference), strongest(lines)
    weaker = "pgd" if robust == "autoattack" else None
    measured = [what for what in ("clean", weaker, robust) if what]
    head = ["row", *(ATTACKS[what] for what in measured), *([f"clean + {ATTACKS[robust]}"] if robust else [])]
    head += ["held-out sum", "passes an image", *COSTS.values()]
    paired = [what for what in ("clean", robust) if what]
    head += [f"{ATTACKS[what]} less {reference}" for what in paired]
    text = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for line in lines:
        cells = [line.name, *(_accuracy(line, what) for what in measured)]
        cells += [_spread(sums(line, robust), 1)] if robust else []
        cells += [_spread(line.values(HELD_OUT), 1), _passes(line.passes)]
        cells += [_spread(line.values(what), 0 if what == "memory_mib" else 1) for what in COSTS]
        pairs = against(line, first)
        cells += [_paired([pair[what] for pair in pairs.values() if what in pair]) for what in paired]
        text.append(f"| {' | '.join(cells)} |")
    text += ["", *_legend(lines)]
    text += [f"{line.name}: {note}." for line in lines for note in line.notes]
    warnings = [(line.name, each.seed, w) for line in lines for each in line.outcomes for w in each.result.warnings]
    text += [f"Warning for {name}, seed {seed}: {warning}." for name, seed, warning in warnings]
    if soon := progress.markdown(curves(lines), reference, COSTS[clock(lines)]):
        text += ["", *soon]
    return "\n".join(text) + "\n"


def as_json(lines: Sequence[Line], reference: str, protocol: Mapping[str, Any]) -> str:
    """Every number of every run, with the protocol."""
    first = _reference(lines, reference)
    rows = []
    for line in lines:
        pairs = against(line, first)
        runs = [
            {
                "seed": each.seed,
                **{what: _share(getattr(each.result, what)) for what in ATTACKS},
                **{what: getattr(each, what) for what in (HELD_OUT, *COSTS)},
                "against_reference": {
                    attack: {
                        "difference": pair.difference,
                        "interval_95": pair.interval,
                        "p_value": pair.p_value,
                        "only_row": pair.only_a,
                        "only_reference": pair.only_b,
                        "n": pair.n,
                    }
                    for attack, pair in pairs.get(each.seed, {}).items()
                },
            }
            for each in line.outcomes
        ]
        passes = line.passes and {
            "forward": line.passes.forward,
            "backward": line.passes.backward,
            "cost": line.passes.cost,
        }
        rows.append({"row": line.name, "passes": passes, "runs": runs, "notes": line.notes})
    return json.dumps({"reference": reference, "protocol": protocol, "rows": rows}, indent=1) + "\n"


def as_csv(lines: Sequence[Line]) -> str:
    """A row of the table each: mean and standard deviation over seeds, accuracies in %."""
    measures, robust = [*ATTACKS, "sum", HELD_OUT, *COSTS], strongest(lines)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{what}_{kind}" for what in measures for kind in ("mean", "sd")]
    writer.writerow(["row", "seeds", "passes_forward", "passes_backward", *columns])
    for line in lines:
        passes = [line.passes.forward, line.passes.backward] if line.passes else ["", ""]
        numbers: list[float | str] = []
        for what in measures:
            values = sums(line, robust) if what == "sum" else line.values(what)
            numbers += [statistics.mean(values) if values else "", statistics.stdev(values) if len(values) > 1 else ""]
        writer.writerow([line.name, len(line.outcomes), *passes, *numbers])
    return text.getvalue()


def _reference(lines: Sequence[Line], name: str) -> Line:
    return next(line for line in lines if line.name == name)


def _legend(lines: Sequence[Line]) -> list[str]:
    results = [each.result for line in lines for each in line.outcomes]
    if not results:
        return ["Not run yet."]
    threats = dict.fromkeys(
        f"{each.norm}, eps {eps_text(each.eps)}; {each.data.name} {each.data.split}; {each.device}" for each in results
    )
    seeds = max(len(line.outcomes) for line in lines)
    spread = "mean ± standard deviation over seeds" if seeds > 1 else "± half the 95 % interval; one seed"
    return [
        f"Accuracy in %, {spread}; {'; '.join(threats)}.",
        "Held-out sum: clean and under validation's attack, within the row's own threat, of the chosen epoch, on "
        "held-out training images; settings are chosen by it, and the test images only tell the outcome.",
        "Passes an image: forward + backward passes of a training step, counted; their cost with a forward pass as 1 "
        "and a backward pass as 2. Minutes: of the training steps, by the clock and over all threads. Memory: its "
        "peak in training, of the whole process or of the GPU.",
        "Less the reference: on the same images, seed by seed, with the p-values of McNemar's exact test.",
    ]


def _accuracy(line: Line, what: str) -> str:
    scores = [found for each in line.outcomes if (found := getattr(each.result, what)) is not None]
    if len(scores) == 1:
        return cell(scores[0])
    numbers = "/".join(dict.fromkeys(str(each.n) for each in scores))
    return _spread(line.values(what), 1) + (f" (n={numbers}, {len(scores)} seeds)" if scores else "")


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _passes(passes: Passes | None) -> str:
    return f"{passes.forward:.4g} + {passes.backward:.4g} ({passes.cost:.4g})" if passes else "-"


def _paired(pairs: Sequence[Paired]) -> str:
    if not pairs:
        return "-"
    chances = ", ".join(f"{pair.p_value:.2g}" for pair in pairs)
    return f"{100 * statistics.mean(pair.difference for pair in pairs):+.1f} (p = {chances})"


def _share(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else {"accuracy": score.accuracy, "n": score.n, "interval_95": score.interval}
