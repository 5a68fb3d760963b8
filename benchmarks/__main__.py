"""`python -m benchmarks [--only SECTION] [--output FILE.json]`: measure, print a line a number, write JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from timm_arat.config import cli, read
from timm_arat.data import DataConfig

Section = Literal["step", "attack", "evaluation", "limit", "memory"]
SECTIONS: tuple[Section, ...] = ("step", "attack", "evaluation", "limit", "memory")


@dataclass(frozen=True)
class Options:
    """Measure speed and memory beside the textbook's.

    Attributes:
        only: The one section to run; all if not given.
        output: The JSON to write.
        shapes: The shapes to measure, names of `benchmarks._shapes`; all if not given.
        rounds: Times that each side runs, in turn.
        threads: CPU threads; with two and anything else running, timings collapse and ratios lie.
        quick: A rehearsal in seconds on tiny networks; the numbers mean nothing.
        model: What timm.create_model takes or a run's folder. The evaluation section evaluates it, or one trained there
            if not given; the attack section counts what it has right after the attack, if given.
        data: The images of those two.
        eps: Its linf radius in pixels of [0, 1].
        images: Its number of images.
        batch_size: Its batch.
    """

    only: Section | None = None
    output: str = "benchmark.json"
    shapes: tuple[str, ...] = ()
    rounds: int = 5
    threads: int = 1
    quick: bool = False
    model: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    eps: float = 0.15
    images: int = 64
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.only is not None and self.only not in SECTIONS:
            raise ValueError(f"only={self.only!r} is not one of {', '.join(SECTIONS)}")
        for name in ("rounds", "threads", "images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not at least 1")


@cli
def main() -> None:
    """The command line."""
    options = read(
        Options, variants={}, prog="python -m benchmarks", description="Speed and memory beside the textbook's."
    )
    # Here, so that --help and errors do not wait for torch.
    import torch

    torch.set_num_threads(options.threads)
    run(options, lambda line: print(line, flush=True))
    print(f"written to {options.output}" + (", a rehearsal: its numbers mean nothing" if options.quick else ""))


def run(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Every section that is asked for; the JSON is written after each."""
    from . import _attack, _evaluation, _limit, _machine, _memory, _shapes, _step

    shapes, rounds = _shapes.choose(options.shapes, options.quick), options.rounds
    # A rehearsal breaks every image with the first attack, so that none is left for the long ones.
    images, eps, epochs = (4, 0.9, 1) if options.quick else (options.images, options.eps, _evaluation.EPOCHS)
    test = options.data, eps, images, options.batch_size
    measures: dict[Section, Callable[[], dict[str, Any]]] = {
        "step": lambda: _step.measure(shapes, rounds, say),
        "attack": lambda: (
            _attack.measure(shapes, rounds, say)
            | ({} if options.model is None else {"strength": _attack.strength(options.model, *test, say)})
        ),
        "evaluation": lambda: _evaluation.measure(options.model, *test, say, epochs),
        "limit": lambda: _limit.measure(shapes, rounds, say),
        "memory": lambda: _memory.measure(shapes, say),
    }
    result: dict[str, Any] = {**_machine.facts(), "rounds": rounds, "quick": options.quick}
    for section in [options.only] if options.only else SECTIONS:
        result[section] = measures[section]()
        Path(options.output).write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
