"""`recipes/evaluate.py MODEL --data.name NAME`: measure, print a table, write JSON; Ctrl-C and call again to resume."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from timm_arat.config import cli, read
from timm_arat.data import DataConfig

STRENGTH: tuple[Literal["clean", "pgd", "autoattack"], ...] = ("clean", "pgd", "autoattack")


@dataclass(frozen=True)
class Options:
    """Measure a model's clean and robust accuracy.

    Attributes:
        model: What timm.create_model takes (a name, hf-hub:ORG/NAME, local-dir:PATH), or a run's folder.
        data: The images.
        attack: The strongest attack to run; the weaker ones run, too.
        norm: Norm of the threat.
        eps: Its radius in pixels of [0, 1]; 8/255 for linf if not given.
        limit: Number of images for AutoAttack, a stratified subset; all if not given.
        pgd_limit: The same for clean and PGD.
        batch_size: Images a batch; random starts are drawn by batch.
        seed: Of the subsets and the attacks.
        fast: Fold BatchNorms away: faster, equal up to rounding. Without it AutoAttack is bitwise the official package.
        output: The JSON to write; results.json in a run's folder, else MODEL.results.json here.
        device: Such as cuda or cpu; cuda if there is one.
    """

    model: str
    data: DataConfig = field(default_factory=DataConfig)
    attack: Literal["clean", "pgd", "autoattack"] = "autoattack"
    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: float | None = None
    limit: int | None = None
    pgd_limit: int | None = None
    batch_size: int = 250
    seed: int = 0
    fast: bool = False
    output: str | None = None
    device: str | None = None


@cli
def main() -> None:
    """The command line."""
    options = read(
        Options,
        variants={},
        prog="evaluate.py",
        description="Clean, PGD-20 and AutoAttack accuracy.",
        positional="model",
    )
    # Here, so that --help and errors do not wait for torch.
    from timm_arat.evaluation import evaluate, table

    output = Path(options.output) if options.output else _output(options.model)
    state = output.with_name(output.name + ".state")
    try:
        result = evaluate(
            options.model,
            options.data,
            norm=options.norm,
            eps=options.eps,
            attacks=STRENGTH[: STRENGTH.index(options.attack) + 1],
            limit=options.limit,
            pgd_limit=options.pgd_limit,
            batch_size=options.batch_size,
            seed=options.seed,
            fast=options.fast,
            state=state,
            device=options.device,
        )
    except KeyboardInterrupt:
        print(f"\ninterrupted: the same command goes on from {state}")
        raise
    result.save(output)
    state.unlink()
    print(table(result))
    print(f"written to {output}")


def _output(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model) / "results.json"
    return Path(re.sub(r"[^\w.-]+", "_", model) + ".results.json")


if __name__ == "__main__":
    main()
