"""What the README shows runs as it stands there, and its commands are CI's."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "PGD-20" in capsys.readouterr().out


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m pip")]
    assert len(commands) == 2
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in script if line and not line.startswith(("#", "set ", "cd "))] == [commands[1]]


def test_every_recipe_of_the_readme_exists():
    named = set(re.findall(r"--config (\w+)(?:\s|$)", README)) | set(
        re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    )
    assert named and named <= {path.stem for path in (ROOT / "recipes").glob("*.yaml")} | {"my"}
