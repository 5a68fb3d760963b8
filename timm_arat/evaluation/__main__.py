"""`recipes/evaluate.py MODEL --data.name NAME`: measure, print a table, write JSON; Ctrl-C and call again to resume."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from timm_arat.config import cli, read
from timm_arat.data import DataConfig
from timm_arat.evaluation.config import ATTACK_NAMES, AttackName, EvaluationConfig


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationConfig):
    """Measure a model's clean and robust accuracy.

    Attributes:
        model: What timm.create_model takes (a name, hf-hub:ORG/NAME, local-dir:PATH), or a run's folder.
        data: The images.
        attack: The strongest attack to run; the weaker ones run, too.
        output: The JSON to write; results.json in a run's folder, else MODEL.results.json here.
        device: Such as cuda or cpu; cuda if there is one.
    """

    model: str
    data: DataConfig = field(default_factory=DataConfig)
    attack: AttackName = "autoattack"
    attacks: tuple[AttackName, ...] = field(init=False)
    output: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", ATTACK_NAMES[: ATTACK_NAMES.index(self.attack) + 1])
        super().__post_init__()

    @property
    def config(self) -> EvaluationConfig:
        return EvaluationConfig(**{each.name: getattr(self, each.name) for each in fields(EvaluationConfig)})


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
        result = evaluate(options.model, options.data, options.config, state=state, device=options.device)
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
