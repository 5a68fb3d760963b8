"""`recipes/compare.py FILE.yaml`: train every row with every seed, and render the table; the same again goes on."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import yaml

from timm_arat.compare.config import Comparison, Run, read_comparison, runs_of
from timm_arat.compare.prediction import Prediction, load
from timm_arat.config import cli, dump
from timm_arat.engine.costs import hours


@cli
def main() -> None:
    """The command line."""
    words = sys.argv[1:]
    comparison = read_comparison(words)
    runs = runs_of(comparison)  # every mistake in any row ends it here
    from timm_arat.compare.run import check_settings, run_all

    check_settings(runs)
    Path(comparison.output).mkdir(parents=True, exist_ok=True)
    predicted = _predict(comparison, runs, words)
    if comparison.dry_run:
        return
    try:
        failed = run_all(runs, comparison.jobs, {name: each.forecast.seconds for name, each in predicted.items()})
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on", flush=True)
        with suppress(ImportError):  # without matplotlib there is no picture, and it is an interruption all the same
            _render(comparison, runs, predicted, {})
        raise
    _render(comparison, runs, predicted, failed)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed, see above: {', '.join(failed)}; the same command "
            "tries them again"
        )


def _predict(comparison: Comparison, runs: list[Run], words: list[str]) -> dict[str, Prediction]:
    """Measure in a process of its own, so that this one, which only waits, holds no network; then say the hours."""
    from timm_arat.compare.run import to_do

    print("measuring a few training steps of every row", flush=True)
    log = Path(comparison.output) / "prediction.log"
    with log.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "timm_arat.compare.predict", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ValueError(f"the measurement failed ({log}): {lines[-1].removeprefix('error: ') if lines else ''}")
    predicted = load(Path(comparison.output))
    for name in comparison.rows:
        each = predicted[name].forecast
        print(
            f"{name}: {each.passes.forward:.4g} forward + {each.passes.backward:.4g} backward passes an image; a run "
            f"takes about {hours(each.training)} of training and {hours(each.measuring)} of measuring"
        )
    left = to_do(runs)
    seconds = sum(predicted[run.row].forecast.seconds for run in left) / comparison.jobs
    print(
        f"{len(left)} of {len(runs)} runs to do, {comparison.jobs} at a time: about {hours(seconds)} on this machine, "
        "if nothing else runs on it",
        flush=True,
    )
    return predicted


def _render(comparison: Comparison, runs: list[Run], predicted: dict[str, Prediction], failed: dict[str, str]) -> None:
    # Here, so that --help and errors do not wait for torch.
    from timm_arat.compare.outcome import Line, Outcome
    from timm_arat.compare.plot import plot
    from timm_arat.compare.run import finished
    from timm_arat.compare.table import as_csv, as_json, markdown
    from timm_arat.engine.recipe import VARIANTS

    lines = []
    for name in comparison.rows:
        mine = [run for run in runs if run.row == name]
        outcomes = tuple(Outcome.load(run.folder, run.seed) for run in mine if finished(run))
        why = {run.name: f"failed: {failed[run.name]}" if run.name in failed else "is not finished" for run in mine}
        notes = tuple(f"seed {run.seed} {why[run.name]}" for run in mine if not finished(run))
        lines.append(Line(name, outcomes, predicted[name].forecast.passes, notes))
    folder = Path(comparison.output)
    configs = {name: next(run.config for run in runs if run.row == name) for name in comparison.rows}
    recipes = {name: yaml.safe_load(dump(config, variants=VARIANTS)) for name, config in configs.items()}
    text = markdown(lines, comparison.reference)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    (folder / "comparison.json").write_text(as_json(lines, comparison.reference, recipes), encoding="utf-8")
    (folder / "comparison.csv").write_text(as_csv(lines), encoding="utf-8")
    print(f"\n{text}\nwritten to {folder}/comparison.md, .json and .csv", flush=True)
    for picture in plot(lines, folder):
        print(picture)


if __name__ == "__main__":
    main()
