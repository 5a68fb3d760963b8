"""`recipes/evaluate.py MODEL --data.name NAME`: measure, print a table, write JSON; Ctrl-C and call again to resume."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path

from timm_arat.config import cli, read
from timm_arat.data import DataConfig
from timm_arat.evaluation._known import known
from timm_arat.evaluation.config import ATTACK_NAMES, AttackName, EvaluationConfig, Norm


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationConfig):
    """Measure a model's clean and robust accuracy.

    Attributes:
        model: What timm.create_model takes (a name, hf-hub:ORG/NAME, local-dir:PATH), or a run's folder.
        data: The images. A run or a published checkpoint knows its own, and its threat; a word here replaces one field.
        attack: The strongest attack to run; the weaker ones run, too.
        threats: Several threats in the place of one, eps by norm, such as "{linf: [2/255, 8/255], l2: [0.5]}"; the
            strongest attack alone runs at each, into a JSON of its own with a picture of the curve.
        output: The JSON to write; results.json in a run's folder, else MODEL.results.json here. Another data set or
            threat than the model's or the file's goes into a file beside it, and so does a weaker result.
        save_adversarial: A new folder for the adversarial images and a picture of some of them.
        per_class: Print the accuracies of each class, too, the worst class first.
        corruptions: Measure accuracy under common corruptions (noise, blur, weather, JPEG ...) in the place of attacks,
            on `pgd_images` images, into a JSON of its own.
        corruption_baseline: The JSON of another model's corruptions, by whose errors mCE is normalised.
        device: Such as cuda or cpu; cuda if there is one.
    """

    model: str
    data: DataConfig = field(default_factory=lambda: DataConfig(name=""))  # none by default, see `main`
    attack: AttackName = "autoattack"
    attacks: tuple[AttackName, ...] = field(init=False)
    threats: dict[Norm, tuple[float, ...]] = field(default_factory=dict)
    output: str | None = None
    save_adversarial: str | None = None
    per_class: bool = False
    corruptions: bool = False
    corruption_baseline: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", ATTACK_NAMES[: ATTACK_NAMES.index(self.attack) + 1])
        for name, weaker in (("autoattack_images", "pgd"), ("pgd_images", "clean")):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} is not at least 1; to go without it, give --attack {weaker}")
        for norm, bounds in self.threats.items():
            for eps in bounds:
                EvaluationConfig(norm=norm, eps=eps)  # a bad one is said before anything is looked for
        super().__post_init__()
        kinds = [name for name in ("threats", "corruptions") if getattr(self, name)]
        if len(kinds) == 2 or (kinds and (self.save_adversarial or self.per_class)):
            raise ValueError(
                f"{kinds[0]} is a measurement of its own: give no other, nor save_adversarial or per_class"
            )
        unused = {"threats": ("norm", "eps"), "corruptions": ("attack", "norm", "eps", "autoattack_images", "fast")}
        for kind in kinds:
            if given := [name for name in unused[kind] if getattr(self, name) != getattr(Options, name)]:
                raise ValueError(f"{', '.join(given)}: {kind} has no use for that; leave it out")
        unread = "autoattack_images" if self.attack != "autoattack" else "pgd_images" if self.threats else ""
        if unread and getattr(self, unread) != getattr(Options, unread):
            raise ValueError(f"{unread}: nothing here is measured on that many; leave it out, or give --attack for it")
        if self.corruption_baseline and not self.corruptions:
            raise ValueError("corruption_baseline is for --corruptions true, which is not given")

    @property
    def config(self) -> EvaluationConfig:
        return EvaluationConfig(**{each.name: getattr(self, each.name) for each in fields(EvaluationConfig)})


@cli
def main() -> None:
    """The command line."""
    words = sys.argv[1:]
    options = _read(words)  # a first time for the model alone; a typing error ends it here
    own = known(options.model)
    options = _read([*own.words(options.data.name), *words])
    if not options.data.name:
        raise ValueError(
            f"data.name: {options.model} is no run or checkpoint that knows its data: give --data.name, such as "
            "digits, torch/cifar10 or hfds/FOLDER"
        )
    if options.threats or options.corruptions:
        other = own.differences(options.data, own.norm or "", own.eps or 0.0)  # of the data alone
        (_several if options.threats else _corrupted)(options, other)
        return
    config = options.config.with_threat(own.norm or "linf", own.eps)
    assert config.norm and config.eps
    differences = own.differences(options.data, config.norm, config.eps)
    # Here, so that --help and errors do not wait for torch.
    from timm_arat.evaluation import evaluate, table
    from timm_arat.evaluation._place import place, save

    output = place(
        options.model, options.data, config.norm, config.eps,
        output=options.output, other=bool(differences), changed=own.changed(options.data),
    )  # fmt: skip
    kept, device = options.save_adversarial, options.device
    with _resumable(output) as state:
        result = evaluate(options.model, options.data, config, state=state, save_adversarial=kept, device=device)
        written = save(result, output)
    print(table(result, per_class=options.per_class))
    _say_other(options, differences)
    if written != output:
        print(f"{output} is kept: it has more images or attacks than this result, or was measured otherwise")
    print(f"written to {written}")
    if options.save_adversarial:
        picture = "" if find_spec("matplotlib") else " (without a picture: pip install timm_arat[plot])"
        print(f"adversarial images are in {options.save_adversarial}{picture}")


def _several(options: Options, other: list[str]) -> None:
    """Measure at several threats, which are all said on the command line."""
    from timm_arat.evaluation import evaluate_threats, threats_table
    from timm_arat.evaluation._threats import draw

    output = _new(options, "threats", other)
    with _resumable(output) as state:
        result = evaluate_threats(
            options.model, options.data, options.threats, options.config, state=state, device=options.device
        )
        result.save(output)
    print(threats_table(result))
    _say_other(options, other)
    print(f"written to {output}")
    if find_spec("matplotlib"):
        picture = output.with_suffix(".png")
        draw(result, picture)
        print(f"a picture of it is {picture}")


def _corrupted(options: Options, other: list[str]) -> None:
    """Measure under corruptions."""
    from timm_arat.evaluation import Corruptions, corruptions_table, evaluate_corruptions

    output = _new(options, "corruptions", other)
    baseline = Corruptions.load(options.corruption_baseline) if options.corruption_baseline else None
    with _resumable(output) as state:
        result = evaluate_corruptions(
            options.model,
            options.data,
            images=options.pgd_images,
            seed=options.seed,
            batch_size=options.batch_size,
            baseline=baseline,
            state=state,
            device=options.device,
        )
        result.save(output)
    print(corruptions_table(result, baseline))
    _say_other(options, other)
    print(f"written to {output}")


@contextmanager
def _resumable(output: Path) -> Iterator[Path]:
    """The journal of what is measured and written inside; removed at the end, kept where it is cut short."""
    from timm_arat.evaluation._kept import forget

    state = output.with_name(output.name + ".state")
    try:
        yield state
    except KeyboardInterrupt:
        print(f"\ninterrupted: the same command goes on from {state}")
        raise
    forget(state)


def _say_other(options: Options, other: list[str]) -> None:
    if other:
        print(f"not what {options.model} was made for: {'; '.join(other)}")


def _new(options: Options, name: str, other: list[str]) -> Path:
    """The file to write, which is not there yet: `output`, or NAME.json in a run's folder, or MODEL.NAME.json here.

    Of `other` data than the model was made for, the name says which.
    """
    from timm_arat.evaluation._place import beside, called

    name = f"{name}-{called(options.data)}" if other else name
    output = Path(options.output) if options.output else beside(options.model, f"{name}.json")
    if output.exists():
        raise ValueError(f"{output} is there: move it, or give --output for this result")
    return output


def _read(words: list[str]) -> Options:
    return read(
        Options,
        words,
        variants={},
        prog="evaluate.py",
        description="Clean, PGD-20 and AutoAttack accuracy; accuracy at several threats, or under corruptions.",
        positional="model",
    )


if __name__ == "__main__":
    main()
