"""What a Hub keeps, on disk: repositories with their commits and references, files by their hash, and cards' rules.

repos/ORG/NAME.json  visibility, references and commits, each commit with the list of all its files
git/OID              small files, by the id of their git blob
lfs/SHA256           large files
incoming/            what is on its way, and parts of large files
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import yaml

Json = dict[str, Any]
BLOCK = 1 << 20  # bytes read at once
LARGE = 10_000_000  # bytes from which any file is a large one
TRACKED = "{} filter=lfs diff=lfs merge=lfs -text\n"
ATTRIBUTES = "".join(map(TRACKED.format, ["*.bin", "*.ckpt", "*.npz", "*.onnx", "*.pt", "*.pth", "*.safetensors"]))
RESULT: Json = {
    "task": {"type": str},
    "dataset": {"type": str, "name": str},
    "metrics": [{"type": str, "value": object}],
}
# What a card's metadata must look like, where they are there.
CARD: Json = {
    "tags": [str],
    "library_name": str,
    "pipeline_tag": str,
    "model-index": [{"name": str, "results": [RESULT]}],
}


class Refusal(Exception):
    """Why a request is not carried out. Clients make their exception of `code` if there is one, else of `status`."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


class Entry(TypedDict):
    """A file of a commit."""

    oid: str  # of its git blob; for a large file, that is a pointer
    size: int
    sha256: str | None  # of a large file


Files = dict[str, Entry]  # by path


class Commit(TypedDict):
    id: str
    parent: str | None
    title: str
    message: str
    date: str
    files: Files


@dataclass
class Repo:
    """A repository as its JSON file keeps it. `refs` has full names: refs/heads/main, refs/tags/v1, refs/pr/1."""

    id: str
    private: bool
    created: str
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def find(self, rev: str) -> Commit:
        """The commit of a branch, a tag, a full reference or an id."""
        names = [f"refs/heads/{'main' if rev == 'HEAD' else rev}", f"refs/tags/{rev}", rev]
        commit = next((self.refs[name] for name in names if name in self.refs), rev)
        if commit not in self.commits:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return self.commits[commit]

    def entry(self, commit: Commit, path: str) -> Entry:
        if path not in commit["files"]:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit["id"])
        return commit["files"][path]

    def history(self, commit: Commit) -> Iterator[Commit]:
        yield commit
        while commit["parent"]:
            yield (commit := self.commits[commit["parent"]])

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit that made the file or folder what it is in `commit`."""
        now = within(commit["files"], path)
        *_, last = takewhile(lambda old: within(old["files"], path) == now, self.history(commit))
        return last

    def add(self, parent: Commit | None, files: Files, title: str, message: str = "") -> Commit:
        """A commit on top of `parent`; `parent` itself where nothing has changed."""
        if parent and parent["files"] == files:
            return parent
        made = Commit(id="", parent=parent and parent["id"], title=title, message=message, date=time(), files=files)
        made["id"] = hashlib.sha1(json.dumps(made).encode()).hexdigest()
        self.commits[made["id"]] = made
        return made


class Store:
    """The folder of a Hub's state. It holds all of it: another process may go on with it."""

    def __init__(self, root: Path, quota: int | None = None) -> None:
        self.root, self.quota = root, quota
        for name in ("repos", "git", "lfs", "incoming"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def path(self, repo_id: str) -> Path:
        return self.root / "repos" / f"{repo_id}.json"

    def load(self, path: Path) -> Repo:
        return Repo(**json.loads(path.read_text()))

    def save(self, repo: Repo) -> None:
        path = self.path(repo.id)
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps(asdict(repo)))
        path.with_suffix(".new").replace(path)

    def repos(self) -> list[Repo]:
        return [self.load(path) for path in sorted((self.root / "repos").glob("*/*.json"))]

    def create(self, repo_id: str, private: bool) -> Repo:
        """A new repository; its first commit holds .gitattributes."""
        repo = Repo(repo_id, private, time())
        first = repo.add(None, {".gitattributes": self.keep(ATTRIBUTES.encode())}, "initial commit")
        repo.refs["refs/heads/main"] = first["id"]
        self.save(repo)
        return repo

    def content(self, entry: Entry) -> Path:
        return self.root / "lfs" / entry["sha256"] if entry["sha256"] else self.root / "git" / entry["oid"]

    def text(self, files: Files, path: str) -> str:
        """A small text file; empty where there is none."""
        entry = files.get(path)
        return self.content(entry).read_text() if entry and not entry["sha256"] else ""

    def keep(self, content: bytes) -> Entry:
        """Store a small file."""
        entry = Entry(oid=git_oid(content), size=len(content), sha256=None)
        self.content(entry).write_bytes(content)
        return entry

    def keep_large(self, received: Path, sha256: str) -> None:
        """Store a large file, by moving it."""
        full = sum(path.stat().st_size for path in (self.root / "lfs").iterdir()) + received.stat().st_size
        if self.quota is not None and full > self.quota:
            raise Refusal(507, f"Storage quota exceeded: {full} of {self.quota} bytes")
        if (came := sha256_of(received)) != sha256:
            raise Refusal(400, f"BadDigest: {sha256} was announced, {came} came")
        received.replace(self.root / "lfs" / sha256)

    def large(self, sha256: str) -> Entry:
        """The entry of a large file that is stored."""
        path = self.root / "lfs" / sha256
        if not path.is_file():
            raise Refusal(400, f"LFS pointer to a file that does not exist: {sha256}")
        entry = Entry(oid="", size=path.stat().st_size, sha256=sha256)
        entry["oid"] = git_oid(pointer(entry))
        return entry

    def commit(self, repo: Repo, parent: Commit, operations: Iterable[Json], title: str, message: str) -> Commit:
        """All of the operations or, where one of them is refused, none. References are left to the caller."""
        files = dict(parent["files"])
        for operation in operations:
            self._apply(repo, files, operation["key"], operation["value"])
        attributes = self.text(files, ".gitattributes")
        new = [path for path, entry in files.items() if entry["sha256"] and not matches(path, tracked(attributes))]
        if new:
            files[".gitattributes"] = self.keep((attributes + "".join(map(TRACKED.format, new))).encode())
        _, errors = metadata(self.text(files, "README.md"))
        if errors:
            raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        return repo.add(parent, files, title, message)

    def _apply(self, repo: Repo, files: Files, key: str, value: Json) -> None:
        path = value["path"].rstrip("/")
        if key == "file":
            files[path] = self.keep(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = self.large(value["oid"])
        elif key == "copyFile":
            files[path] = repo.entry(repo.find(value["srcRevision"]), value["srcPath"])
        elif key in ("deletedFile", "deletedFolder"):
            gone = [path] if key == "deletedFile" and path in files else []
            if key == "deletedFolder":
                gone = list(within(files, path))
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise Refusal(400, f"Unknown operation: {key}")


def time() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def sha256_of(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
    return sha256.hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(entry: Entry) -> bytes:
    """What git holds in place of a large file."""
    lines = ["version https://git-lfs.github.com/spec/v1", f"oid sha256:{entry['sha256']}", f"size {entry['size']}", ""]
    return "\n".join(lines).encode()


def within(files: Files, path: str) -> Files:
    """The file `path`, or all files of the folder `path`."""
    return {name: entry for name, entry in files.items() if f"{name}/".startswith(f"{path}/")}


def tracked(attributes: str) -> list[str]:
    """Patterns of large files, of a .gitattributes."""
    return [line.split()[0] for line in attributes.splitlines() if " filter=lfs" in line]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether patterns of .gitattributes or .gitignore, in their common forms, speak of the file or a folder of it."""
    parts = [*PurePosixPath(path).parents, PurePosixPath(path)]
    return any(
        fnmatch(str(part) if "/" in pattern.rstrip("/") else part.name, pattern.strip("/"))
        for pattern in patterns
        for part in parts
    )


def metadata(card: str) -> tuple[Json, list[str]]:
    """A card's metadata, and what is wrong with it."""
    found = re.match(r"---[ \t]*\r?\n(.*?\n)?---\s*(\n|$)", card, re.DOTALL)
    try:
        data = (yaml.safe_load(found[1] or "") if found else None) or {}
    except yaml.YAMLError as error:
        return {}, [f"YAML parse error: {error}"]
    if not isinstance(data, dict):
        return {}, ['"metadata" must be of type dict']
    return data, list(violations(data, {name: wanted for name, wanted in CARD.items() if name in data}, ""))


def violations(value: Any, wanted: Any, at: str) -> Iterator[str]:
    """Where `value` differs from a pattern of lists (of one kind), dictionaries (of required names) and types."""
    kind = wanted if isinstance(wanted, type) else type(wanted)
    if not isinstance(value, kind):
        yield f'"{at}" must be of type {kind.__name__}'
    elif kind is list:
        for i, item in enumerate(value):
            yield from violations(item, wanted[0], f"{at}[{i}]")
    elif kind is dict:
        for name, inner in wanted.items():
            where = f"{at}.{name}".lstrip(".")
            yield from violations(value[name], inner, where) if name in value else [f'"{where}" is required']
