"""Public copies of what a run wrote down for its owner: no path of the machine, no password.

A local path is shortened to its last component: where images lay on somebody's disk says nothing to a reader, and the
Hub takes no path for the name of a data set.
"""

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..evaluation import Robustness
from ..models._secrets import without_password

# As timm names data sets: the kind, and then a name or a local folder.
_KIND = re.compile(r"(hfds|hfids|tfds|wds|torch)/(.*)", re.DOTALL)
_SOURCE = re.compile(r"(local-dir:|file://|--?[\w.-]+=)(.*)", re.DOTALL)
_LOCAL = re.compile(r"(?:/|~|\.{1,2}(?:[\\/]|$)|[A-Za-z]:[\\/]|\\\\)")
# In running text: not in 8/255, and/or, https://...
_IN_TEXT = re.compile(r"(?<![\w.:/\\<-])(?:~|\.{1,2}|[A-Za-z]:)?[\\/][^\s\"'<>|;,)\]}]+")
KEPT = ("label_names", "label_descriptions")  # names of classes are no paths


def public(text: str) -> str:
    """One value, such as a data set's name, a setting or a sentence."""
    text = without_password(text)
    if found := _SOURCE.fullmatch(text):
        return ("" if found[1] == "file://" else found[1]) + public(found[2])
    if (found := _KIND.fullmatch(text)) and _LOCAL.match(found[2]):
        return f"{found[1]}/{_last(found[2])}"
    if _LOCAL.match(text):
        return _last(text)
    return _IN_TEXT.sub(lambda path: _last(path.group()), text)


def public_command(command: str) -> str:
    """A command line, argument by argument; lines are commands of their own."""
    return "\n".join(map(_public_line, command.splitlines()))


def _public_line(command: str) -> str:
    try:
        arguments = shlex.split(command)
    except ValueError:  # a quotation without an end
        arguments = command.split()
    cleaned = [public(argument) for argument in arguments]
    return command if cleaned == arguments else shlex.join(cleaned)


def public_tree(value: Any) -> Any:
    """The same for every text in a tree of objects and lists."""
    if isinstance(value, dict):
        return {key: each if key in KEPT else public_tree(each) for key, each in value.items()}
    if isinstance(value, list):
        return [public_tree(each) for each in value]
    return public(value) if isinstance(value, str) else value


def public_yaml(text: str) -> str:
    """A YAML file; as it is, comments and all, if there is nothing to shorten."""
    tree = yaml.safe_load(text)
    cleaned = public_tree(tree)
    return text if cleaned == tree else yaml.safe_dump(cleaned, sort_keys=False, allow_unicode=True)


def public_lines(text: str) -> str:
    """A file with a JSON object a line."""
    return "".join(json.dumps(public_tree(json.loads(line))) + "\n" for line in text.splitlines())


def public_results(results: Robustness) -> Robustness:
    """The results of an evaluation; every number stays."""
    return replace(
        results,
        model=public(results.model),
        data=replace(results.data, name=public(results.data.name)),
        command=public_command(results.command),
    )


def check_public(folder: Path, names: Iterable[str], private: Iterable[Path]) -> None:
    """The last look: ValueError if one of the files `names` holds one of the `private` paths of this machine."""
    paths = {str(path) for path in private}
    paths = {path for path in paths if len(path) > 3}  # the root is in every path
    for name in names:
        content = (folder / name).read_bytes()
        for path in paths:
            if re.search(rb"(?<![\w.-])" + re.escape(path.encode()) + rb"(?![\w.-])", content):
                raise ValueError(
                    f"{name} would publish the path {path} of this machine: take it out of the run's settings"
                )


def _last(path: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", ".", "..", "~")]
    if parts[-2:-1] == ["recipes"]:
        return "/".join(parts[-2:])  # what a reader runs in a checkout
    return parts[-1] if parts else "local"
