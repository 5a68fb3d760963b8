"""What a comparison's YAML holds, and the training runs that follow from it. Free of torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from ..config import comparisons, find, leaves, read
from ..engine.config import ModelConfig, TrainConfig
from ..engine.recipe import read_recipe
from ..names import nearest

# The sections of a recipe that are the same for every row. A row has the rest to itself: its method, its attack on the
# training images, its optimizer and its companions.
PROTOCOL = ("data", "model", "epochs", "seed", "validation", "evaluation", "mixed_precision", "compile", "output")
# But for these, which say how training begins and ends an epoch, on the same images and the same network.
OWN = ("data.drop_last", "model.init")


@dataclass(frozen=True)
class Comparison:
    """Training methods by one protocol: a table of accuracies and costs over several seeds.

    Attributes:
        file: The comparison's YAML file, or the name of one that came with timm_arat.
        recipe: The recipe of training that the protocol stands on, by name or file. Its data, model, epochs, validation
            and evaluation, with `settings`, hold for every row; so does its threat, `attack`, in the evaluation.
        settings: Settings of a recipe, which replace those of the recipe, and of each row's recipe.
        rows: By name, each with `recipe` (that of the protocol if not given), `settings` (which replace all others),
            `after`, an earlier row whose trained network is its teacher, and `start`, one whose weights it begins with.
            A row may have none of them.
        reference: The row with which all others are compared image by image; the first if not given.
        seeds: One run of every row for each.
        jobs: Runs at a time; on a CPU each gets its share of the cores.
        output: The folder of all runs, the table and the pictures; runs/FILE if not given.
        dry_run: Print the hours that it will take, by a short measurement on this machine, and stop.
    """

    file: str
    recipe: str
    rows: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    seeds: tuple[int, ...] = (0,)
    jobs: int = 1
    output: str = ""
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows is empty: name at least one method to compare")
        for name in self.rows:
            if not re.fullmatch(r"[\w+-][\w.+-]*", str(name)):
                raise ValueError(f"rows has {name!r}: a row's name is that of a folder; use letters, digits, _ . + -")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: wanted at least one, and none twice")
        if self.jobs < 1:
            raise ValueError(f"jobs={self.jobs} is not at least 1")
        if not self.reference:
            object.__setattr__(self, "reference", next(iter(self.rows)))
        if self.reference not in self.rows:
            raise ValueError(f"reference={self.reference!r} is no row; {nearest(self.reference, self.rows)}")
        if not self.output:
            object.__setattr__(self, "output", f"runs/{Path(self.file).stem}")


@dataclass(frozen=True)
class Row:
    """One line of the table, see `Comparison.rows`."""

    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    after: str = ""
    start: str = ""


@dataclass(frozen=True)
class Run:
    """One training: a row with a seed. `after` names the runs that must be finished before."""

    row: str
    seed: int
    config: TrainConfig
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.row}-{self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.config.output or "")


def read_comparison(words: Sequence[str]) -> Comparison:
    """The comparison of a command line, `FILE.yaml [--settings.data.name NAME ...]`.

    Raises:
        ValueError: a word or a line of the file cannot be used.
    """
    words = list(words)
    if words and not words[0].startswith("-"):
        words += ["--config", words[0]]
    return read(
        Comparison,
        words,
        variants={},
        prog="compare.py",
        description="Train a list of recipes by one protocol, and render what comes out as a table and pictures.",
        positional="file",
        bundled=comparisons(),
    )


def runs_of(comparison: Comparison) -> list[Run]:
    """Every run of the comparison, seed by seed, in the order of the rows.

    Raises:
        ValueError: naming the row, a recipe or setting that cannot be used, or one that belongs to the protocol.
    """
    protocol = protocol_of(comparison)
    rows = {name: _row(name, tree, comparison) for name, tree in comparison.rows.items()}
    configs = {name: _config(name, row, comparison, protocol) for name, row in rows.items()}
    found = []
    for seed in comparison.seeds:
        for name, row in rows.items():
            config = replace(configs[name], seed=seed, output=f"{comparison.output}/{name}-{seed}")
            if row.after:
                teacher = ModelConfig(name=f"{comparison.output}/{row.after}-{seed}", pretrained=True)
                config = replace(config, teacher=teacher)
            if row.start:
                start = f"{comparison.output}/{row.start}-{seed}"
                # That folder knows the architecture's options.
                model = replace(config.model, name=start, pretrained=True, kwargs={}, init="timm")
                config = replace(config, model=model)
            after = {each: None for each in (row.after, row.start) if each}
            found.append(Run(name, seed, config, tuple(f"{each}-{seed}" for each in after)))
    return found


def protocol_of(comparison: Comparison) -> TrainConfig:
    """What holds for every row, as a recipe.

    Raises:
        ValueError: a setting cannot be used, or no training images are held out.
    """
    config = _stacked(comparison, comparison.recipe, comparison.settings)
    if not config.data.validates:
        raise ValueError(
            f"{comparison.file}: data.val_size is 0: the best epoch is chosen on held-out training images, so that the "
            "test images are seen once; set it, such as to 1000, under settings"
        )
    return replace(config, evaluation=config.evaluated())


def _row(name: str, tree: Any, comparison: Comparison) -> Row:
    tree = {} if tree is None else tree
    known = [each.name for each in fields(Row)]
    where = f"{comparison.file}: rows.{name}"
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} is {tree!r}: wanted lines of {', '.join(known)}")
    for key in tree:
        if key not in known:
            raise ValueError(f"{where}.{key}: no such option; {nearest(str(key), known)}")
    row = Row(**{key: value for key, value in tree.items() if value is not None})
    for key in ("recipe", "after", "start"):
        if not isinstance(getattr(row, key), str | None):
            raise ValueError(f"{where}.{key} is {getattr(row, key)!r}: wanted a name")
    if not isinstance(row.settings, Mapping):
        raise ValueError(f"{where}.settings is {row.settings!r}: wanted lines `option: value` as in a recipe")
    for key, _ in leaves(row.settings):
        if key.split(".")[0] in PROTOCOL and key not in OWN:
            raise ValueError(f"{where}.settings.{key}: the protocol has it, the same for all rows: put it in settings")
    earlier = list(comparison.rows)[: list(comparison.rows).index(name)]
    for key, other in (("after", row.after), ("start", row.start)):
        if other and other not in earlier:
            raise ValueError(f"{where}.{key}: {other!r} is no row above it; {nearest(other, earlier)}")
    return row


def _config(name: str, row: Row, comparison: Comparison, protocol: TrainConfig) -> TrainConfig:
    """The row's recipe under the protocol."""
    try:
        config = _stacked(comparison, row.recipe or comparison.recipe, comparison.settings, row.settings)
        same = {key: getattr(protocol, key) for key in PROTOCOL}
        same["data"] = replace(protocol.data, drop_last=config.data.drop_last)
        same["model"] = replace(protocol.model, init=config.model.init)
        return replace(config, twin=None, **same)
    except ValueError as error:
        raise ValueError(f"{comparison.file}: rows.{name}: {error}") from error


def _stacked(comparison: Comparison, recipe: str, *trees: Mapping[str, Any]) -> TrainConfig:
    """The recipe with the settings of `trees` over it, each over the ones before, as a recipe over its `base:`."""
    beside = Path(comparison.file).parent / f"{recipe}.yaml"
    path = (beside if beside.is_file() else find(recipe)).resolve()
    with TemporaryDirectory() as folder:
        for number, tree in enumerate(trees):
            above = Path(folder) / f"settings-{number}.yaml"
            above.write_text(yaml.safe_dump({"base": str(path), **tree}, sort_keys=False), encoding="utf-8")
            path = above
        try:
            return read_recipe(path)
        except ValueError as error:  # what its user wrote are lines of the comparison, not these files
            said = re.sub(rf"{re.escape(folder)}\S*?/?settings-\d+\.yaml", f"{comparison.file}: settings", str(error))
            raise ValueError(said) from error
