"""Install the oldest and the newest versions of everything and test there: `python -m benchmarks.compatibility`.

For every Python, two environments made by uv: the lowest versions that pyproject.toml allows and that have a wheel for
it, and the newest that there are. In each, tests that meet torch, timm, accelerate, datasets and huggingface_hub at
their edges. An environment takes some gigabytes of the disk and is removed again; what came out is written after each,
so the command goes on where it was stopped. `--pythons` takes versions that uv finds on the machine.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from timm_arat.config import cli, read
from timm_arat.files import write_text

from .document import check_block, write_block

SHOWN = ("torch", "torchvision", "timm", "accelerate", "huggingface-hub", "safetensors", "datasets", "numpy")
# Of pyproject.toml's group `dev`; installed with the group itself, datasets was the newest, not the lowest.
TOOLS = ("pytest>=8.0", "pytest-xdist>=3.6", "hypothesis>=6.100", "onnx>=1.16", "onnxscript>=0.7")


@dataclass(frozen=True)
class Options:
    """Where to test.

    Attributes:
        pythons: Versions of Python.
        resolutions: lowest-direct, highest or both.
        tests: Names of test files, without `test_` and `.py`.
        into: The Markdown document; its JSON lies beside it.
        fresh: Forget what earlier calls found.
    """

    pythons: tuple[str, ...] = ("3.10", "3.11", "3.12", "3.13")
    resolutions: tuple[str, ...] = ("lowest-direct", "highest")
    tests: tuple[str, ...] = (
        "attacks", "checkpoint", "config", "data", "engine", "evaluation_autoattack", "fold", "hub", "methods",
        "models_as_timm", "models_create", "norm_convert", "task",
    )  # fmt: skip
    into: str = "docs/reliability.md"
    fresh: bool = False


@cli
def main() -> None:
    """Every environment in turn; then the table."""
    options = read(Options, variants={}, prog="python -m benchmarks.compatibility", description="Oldest and newest.")
    document = Path(options.into)
    check_block(document, "compatibility")
    uv = shutil.which("uv") or shutil.which("uv", path=".tools/bin")
    if uv is None:
        raise FileNotFoundError("uv is not here: `python3 -m pip install --target .tools uv`, as the README does")
    facts = document.with_name("compatibility.json")
    rows = json.loads(facts.read_text()) if facts.is_file() and not options.fresh else []
    for python in options.pythons:
        for resolution in options.resolutions:
            if any((row["python"], row["resolution"]) == (python, resolution) for row in rows):
                continue
            row = {"python": python, "resolution": resolution, **tried(uv, python, resolution, options.tests)}
            print(row, flush=True)
            rows.append(row)
            write_text(facts, json.dumps(rows, indent=1) + "\n")
    write_block(document, "compatibility", table(rows))


def tried(uv: str, python: str, resolution: str, tests: tuple[str, ...]) -> dict[str, Any]:
    """`versions` and the `outcome` of the tests in a new environment, or why there is none."""
    with TemporaryDirectory() as folder:
        interpreter = f"{folder}/bin/python"
        install = ["pip", "install", "--quiet", "--python", interpreter, "--resolution", resolution]
        # Nobody who installs an old version compiles it; our own package alone is built.
        install += ["--only-binary", ":all:", "--no-binary", "timm-arat"]
        steps = (
            ["venv", "--quiet", "--clear", "--python", python, folder],
            [*install, ".[digits,data,plot]"],
            [*install, *TOOLS],
        )
        for step in steps:
            done = subprocess.run([uv, *step], capture_output=True, text=True)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                return {"versions": {}, "outcome": f"not installed: {lines[-1].strip() if lines else step[0]}"}
        listed = subprocess.run(
            [uv, "pip", "list", "--quiet", "--format", "json", "--python", interpreter],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        every = {each["name"]: each["version"] for each in json.loads(listed.stdout)}
        files = [f"tests/test_{name}.py" for name in tests]
        done = subprocess.run(
            [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()},
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        for name in failed:
            print(f"  {name}", flush=True)
        outcome = re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= ")) if lines else done.stderr[-200:]
        return {"versions": {name: every[name] for name in SHOWN}, "outcome": outcome, "failed": failed}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown of the JSON."""
    lines = [
        f"| Python | versions | {' | '.join(SHOWN)} | tests |",
        "|---|---|" + "---|" * (len(SHOWN) + 1),
    ]
    words = {"lowest-direct": "lowest", "highest": "newest"}
    for row in sorted(rows, key=lambda row: (int(row["python"].split(".")[1]), row["resolution"] == "highest")):
        cells = [row["versions"].get(name, "") for name in SHOWN]
        lines.append(f"| {row['python']} | {words[row['resolution']]} | {' | '.join(cells)} | {row['outcome']} |")
    return lines


if __name__ == "__main__":
    main()
