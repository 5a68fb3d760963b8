"""What the README shows runs as it stands there, and its commands are CI's."""

import re
from pathlib import Path

import timm

import timm_arat  # noqa: F401  # registers
from benchmarks import zoo

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


def test_every_name_has_weights_or_is_said_not_to():
    there = set(re.findall(r"^\| \[`(\S+?)`\]", README, re.MULTILINE))
    assert there == set(timm.list_pretrained("*_arat*"))
    paragraph = re.search(r"Not trained yet:(.*?)\n[A-Z]", README, re.DOTALL)
    untrained = set(re.findall(r"`(\w+_arat)`", paragraph[1]))
    assert untrained.isdisjoint({name.partition(".")[0] for name in there})
    assert untrained | {name.partition(".")[0] for name in there} == set(timm.list_models("*_arat"))


def test_the_zoos_pages_are_what_its_json_gives():
    found = zoo.entries()
    for document, lines in ((ROOT / "docs/zoo.md", zoo.page(found)), (ROOT / "README.md", zoo.readme(found))):
        assert "\n".join(["<!-- zoo:begin -->", "", *lines, "", "<!-- zoo:end -->"]) in document.read_text(), (
            f"{document.name} is out of step: python -m benchmarks.zoo"
        )
