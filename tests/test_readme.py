"""What the README shows runs as it stands there, and its commands are CI's."""

import re
from pathlib import Path

import timm

import timm_arat  # noqa: F401  # registers

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        exec(compile(code, "README.md", "exec"), {})
    assert "PGD-20" in capsys.readouterr().out


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m pip")]
    assert len(commands) == 2
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in script if line and not line.startswith(("#", "set ", "cd "))] == [commands[1]]


def test_every_recipe_of_the_readme_exists():
    named = set(re.findall(r"--config (\w+)(?:\s|$)", README)) | set(
        re.findall(r"^\| `(\w+)` \|", README.partition("| Recipe |")[2], re.MULTILINE)
    )
    assert named and named <= {path.stem for path in (ROOT / "recipes").glob("*.yaml")} | {"my"}


def test_the_table_of_names_says_which_have_weights():
    rows = re.findall(r"^\| (`\w+_arat`.*?) \| (`.*?`) \| (.*?) \|$", README, re.MULTILINE)
    said = {f"{name}.{tag}": weights for names, tags, weights in rows for name in _words(names) for tag in _words(tags)}
    exist = set(timm.list_pretrained("*_arat*"))
    assert exist == {name for name, weights in said.items() if weights != "not published yet"}
    assert {name.split(".")[0] for name in said} == set(timm.list_models("*_arat"))


def _words(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)
