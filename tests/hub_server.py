"""A loopback server with the protocol of the Hugging Face Hub, for its unmodified clients to publish to and load from.

    with HubServer(folder) as hub:
        subprocess.run(command, env=os.environ | hub.env)

By hand, `python tests/hub_server.py FOLDER` prints the settings for another terminal. Model repositories, commits,
pull requests, tags, branches and LFS storage follow the documented and observed protocol. It is not the Hub: nothing
here limits rates, gates, renders or merges, and files move by LFS, not by Xet (hence HF_HUB_DISABLE_XET). All state is
in the folder, so a server may be stopped and another one started on it.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import (
    BLOCK,
    LARGE,
    Commit,
    Entry,
    Json,
    Refusal,
    Repo,
    Store,
    matches,
    metadata,
    pointer,
    sha256_of,
    tracked,
    within,
)

USER = "tester"  # whom every token belongs to


@dataclass
class Answer:
    """What is sent back, whole or in the range that was asked for."""

    body: bytes | Path = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Request:
    method: str
    path: str  # still quoted
    query: dict[str, list[str]]
    headers: Message
    body: Path  # received whole; an action may move it away
    role: str = ""

    def json(self) -> Json:
        parsed: Json = json.loads(self.body.read_bytes() or b"{}")
        return parsed

    def asks(self, flag: str) -> bool:
        return self.query.get(flag, [""])[-1].lower() in ("1", "true")


@dataclass
class Fault:
    method: str
    path: str
    status: int | None
    times: int
    late: bool


class HubServer:
    """Serves from entering to leaving its `with`; `endpoint` is its address.

    Attributes:
        requests: Method and path, query included, of every request so far.

    Args:
        root: Folder of its state.
        write_token: The token that may write; any if not given. Who sends none reads what is public.
        read_token: A token that may read what is private, and nothing else.
        quota: Bytes of large files that fit; an upload past it is answered 507.
        part_size: Bytes from which a large file comes in parts of this size.
        port: A free one if 0.
    """

    def __init__(
        self,
        root: Path,
        *,
        write_token: str | None = None,
        read_token: str | None = None,
        quota: int | None = None,
        part_size: int = 64 << 20,
        port: int = 0,
    ) -> None:
        self.store = Store(Path(root), quota)
        self.write_token, self.read_token, self.part_size, self.port = write_token, read_token, part_size, port
        self.requests: list[tuple[str, str]] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        self._http = _Http(self)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.stopped = True
        self._http.shutdown()
        self._http.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """Where large files are. Another host than `endpoint`: clients take one of the same host for the Hub's own."""
        return f"http://localhost:{self.port}/storage"

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment, when it is imported."""
        token = self.write_token or "hf_anything"
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token}

    def fail(self, method: str, path: str, status: int | None = 500, times: int = 1, late: bool = False) -> None:
        """Let the next requests with a path like this regular expression fail.

        Args:
            method: GET, PUT, ...
            path: Searched for in the quoted path.
            status: What is answered; None breaks the connection off: in the middle of the request's body, or of the
                answer's where the request has none.
            times: How many requests.
            late: Carry the request out, and fail only in its answer.
        """
        self._faults.append(Fault(method, path, status, times, late))

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that a request runs into, if any."""
        with self._lock:
            waiting = (fault for fault in self._faults if fault.times and fault.method == method)
            found = next((fault for fault in waiting if re.search(fault.path, path)), None)
            if found:
                found.times -= 1
        return found

    def answer(self, request: Request) -> Answer:
        """Carry out one request, alone."""
        for method, pattern, action, needs in ROUTES:
            found = pattern.fullmatch(request.path)
            if not found or method != request.method.replace("HEAD", "GET"):
                continue
            values: dict[str, Any] = {name: unquote(value) for name, value in found.groupdict().items() if value}
            with self._lock:
                request.role = "" if needs == "nothing" else self._role(request.headers)
                if "repo" in values:
                    values["repo"] = self.load(values["repo"], request)
                if needs == "write" and request.role != "write":
                    raise Refusal(403, "This token may only read") if request.role else STRANGER
                return action(self, request, **values)
        raise Refusal(404, f"No such endpoint: {request.method} {request.path}")

    def _role(self, headers: Message) -> str:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token == self.read_token:
            return "read"
        if token and self.write_token not in (None, token):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return "write" if token else ""

    def load(self, repo_id: str, request: Request) -> Repo:
        """A repository; one that is private does not exist for who sends no token."""
        path = self.store.path(repo_id)
        if path.is_file() and (request.role or not self.store.load(path).private):
            return self.store.load(path)
        raise Refusal(404 if request.role else 401, "Repository not found", "RepoNotFound")


STRANGER = Refusal(401, "Invalid username or password.")
PATTERNS = {
    "repo": r"(?!\.)[\w.-]+/(?!\.)[\w.-]+",
    "rev": r"refs/[^/]+/[^/]+|[^/]+",
    "name": r"[^/]+",
    "path": r".+",
    "sha256": r"[0-9a-f]{64}",
    "part": r"\d+",
}
Action = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Action, str]] = []


def route(method: str, path: str, needs: str = "read") -> Callable[[Action], Action]:
    """Answer requests like these by the function below. GET is HEAD, too; "nothing" looks at no token."""
    pattern = re.sub(r"{(\w+)}", lambda found: f"(?P<{found[1]}>{PATTERNS[found[1]]})", path)

    def register(action: Action) -> Action:
        ROUTES.append((method, re.compile(pattern), action, needs))
        return action

    return register


def say(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value, default=str).encode(), status, {"Content-Type": "application/json"})


def refuse(refusal: Refusal) -> Answer:
    told = {"X-Error-Message": refusal.message, "X-Error-Code": refusal.code, "X-Repo-Commit": refusal.commit}
    headers = {name: " ".join(value.split()).encode("ascii", "replace").decode() for name, value in told.items()}
    body = json.dumps({"error": refusal.message}).encode()
    return Answer(body, refusal.status, {name: value for name, value in headers.items() if value})


# Accounts, repositories, cards.


@route("GET", "/api/whoami-v2")
def whoami(hub: HubServer, request: Request) -> Answer:
    if not request.role:
        raise STRANGER
    token = {"displayName": "a token", "role": request.role}
    return say({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token", "accessToken": token}})


@route("POST", "/api/validate-yaml", needs="nothing")
def validate(hub: HubServer, request: Request) -> Answer:
    data, errors = metadata(request.json()["content"])
    warnings = [] if data or errors else ["empty or missing yaml metadata in repo card"]
    told = {"errors": [{"message": error} for error in errors], "warnings": [{"message": text} for text in warnings]}
    return say(told, 400 if errors else 200)


@route("POST", "/api/repos/create", needs="write")
def create(hub: HubServer, request: Request) -> Answer:
    wanted = request.json()
    repo_id = repo_name(wanted)
    if wanted.get("type", "model") != "model" or not re.fullmatch(PATTERNS["repo"], repo_id):
        raise Refusal(400, f"Not a model repository: {repo_id}")
    url = f"{hub.endpoint}/{repo_id}"
    if hub.store.path(repo_id).is_file():
        return say({"error": "You already created this model repo", "url": url}, 409)
    hub.store.create(repo_id, wanted.get("private") or wanted.get("visibility") == "private")
    return say({"name": repo_id, "url": url})


@route("DELETE", "/api/repos/delete", needs="write")
def delete(hub: HubServer, request: Request) -> Answer:
    hub.store.path(hub.load(repo_name(request.json()), request).id).unlink()
    return say({})


def repo_name(wanted: Json) -> str:
    return f"{wanted.get('organization') or USER}/{wanted['name']}"


@route("PUT", "/api/models/{repo}/settings", needs="write")
def settings(hub: HubServer, request: Request, repo: Repo) -> Answer:
    wanted = request.json()
    repo.private = wanted["visibility"] == "private" if "visibility" in wanted else wanted.get("private", repo.private)
    hub.store.save(repo)
    return say({"private": repo.private})


@route("GET", "/api/models")
def search(hub: HubServer, request: Request) -> Answer:
    words = request.query.get("search", [""])[0].lower()
    visible = (repo for repo in hub.store.repos() if request.role or not repo.private)
    return say([about(hub, repo, "main", request) for repo in visible if words in repo.id.lower()])


@route("GET", "/api/models/{repo}(/revision/{rev})?")
def info(hub: HubServer, request: Request, repo: Repo, rev: str = "main") -> Answer:
    told, expand = about(hub, repo, rev, request), request.query.get("expand")
    return say({name: value for name, value in told.items() if name == "id" or not expand or name in expand})


def about(hub: HubServer, repo: Repo, rev: str, request: Request) -> Json:
    commit = repo.find(rev)
    card, _ = metadata(hub.store.text(commit["files"], "README.md"))
    named: Json = {name: card[name] for name in ("library_name", "pipeline_tag", "model-index") if name in card}
    tags = [named.get("library_name"), named.get("pipeline_tag"), *card.get("tags", [])]
    siblings: list[Json] = [{"rfilename": path} for path in commit["files"]]
    if request.asks("blobs"):
        for sibling in siblings:
            sibling |= described(commit["files"][sibling["rfilename"]], "blobId", "sha256")
    return {
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit["id"],
        "createdAt": repo.created,
        "lastModified": commit["date"],
        "private": repo.private,
        "tags": [tag for tag in tags if tag] + [f"license:{card[name]}" for name in ("license",) if name in card],
        "cardData": card,
        "siblings": siblings,
        **named,
    }


# Commits, references, files.


def listing(repo: Repo, commit: Commit, expand: bool) -> dict[str, Json]:
    """What is told of each file and folder, by path."""
    files, found = commit["files"], {}
    folders = {str(folder) for path in files for folder in PurePosixPath(path).parents} - {"."}
    for path in sorted(folders | set(files)):
        if path in files:
            found[path] = {"type": "file", "path": path, **described(files[path], "oid", "oid")}
        else:
            oid = hashlib.sha1(json.dumps(within(files, path)).encode()).hexdigest()
            found[path] = {"type": "directory", "path": path, "oid": oid, "size": 0}
        if expand:
            last = repo.last_change(commit, path)
            found[path]["lastCommit"] = {"id": last["id"], "title": last["title"], "date": last["date"]}
    return found


def described(entry: Entry, oid: str, sha256: str) -> Json:
    """A file, with the names of its two ids, which differ between endpoints."""
    lfs = {sha256: entry["sha256"], "size": entry["size"], "pointerSize": len(pointer(entry))}
    return {oid: entry["oid"], "size": entry["size"], **({"lfs": lfs} if entry["sha256"] else {})}


@route("GET", "/api/models/{repo}/tree/{rev}(/{path})?")
def tree(hub: HubServer, request: Request, repo: Repo, rev: str, path: str = "") -> Answer:
    found = listing(repo, repo.find(rev), request.asks("expand"))
    if path and found.get(path, {}).get("type") != "directory":
        raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
    inside = {name: told for name, told in found.items() if not path or name.startswith(f"{path}/")}
    direct = {name: told for name, told in inside.items() if "/" not in name[len(path) :].lstrip("/")}
    return say(list((inside if request.asks("recursive") else direct).values()))


@route("POST", "/api/models/{repo}/paths-info/{rev}")
def paths_info(hub: HubServer, request: Request, repo: Repo, rev: str) -> Answer:
    if "json" in request.headers.get("Content-Type", ""):
        wanted = request.json()
    else:
        form = parse_qs(request.body.read_text())
        wanted = {"paths": form["paths"], "expand": form.get("expand") == ["true"]}
    found = listing(repo, repo.find(rev), bool(wanted.get("expand")))
    return say([found[path] for path in wanted["paths"] if path in found])


@route("GET", "/api/models/{repo}/refs")
def refs(hub: HubServer, request: Request, repo: Repo) -> Answer:
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/", "pullRequests": "refs/pr/"}
    told: dict[str, list[Json]] = {kind: [] for kind in kinds}
    for kind, prefix in kinds.items():
        for ref, commit in repo.refs.items():
            if ref.startswith(prefix):
                told[kind].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit})
    if not request.asks("include_prs"):
        del told["pullRequests"]
    return say(told)


@route("GET", "/api/models/{repo}/commits/{rev}")
def commits(hub: HubServer, request: Request, repo: Repo, rev: str) -> Answer:
    past = repo.history(repo.find(rev))
    return say([{**commit, "files": None, "authors": [{"user": USER}]} for commit in past])


@route("POST", "/api/models/{repo}/tag/{rev}", needs="write")
def tag(hub: HubServer, request: Request, repo: Repo, rev: str) -> Answer:
    return refer(hub, repo, f"refs/tags/{request.json()['tag']}", rev)


@route("POST", "/api/models/{repo}/branch/{name}", needs="write")
def branch(hub: HubServer, request: Request, repo: Repo, name: str) -> Answer:
    return refer(hub, repo, f"refs/heads/{name}", request.json().get("startingPoint", "main"))


def refer(hub: HubServer, repo: Repo, ref: str, rev: str) -> Answer:
    if ref in repo.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.find(rev)["id"]
    hub.store.save(repo)
    return say({})


@route("DELETE", "/api/models/{repo}/(?P<kind>tag|branch)/{name}", needs="write")
def unrefer(hub: HubServer, request: Request, repo: Repo, kind: str, name: str) -> Answer:
    if (kind, name) == ("branch", "main"):
        raise Refusal(403, "The main branch stays")
    if repo.refs.pop(f"refs/{'tags' if kind == 'tag' else 'heads'}/{name}", None) is None:
        raise Refusal(404, f"No such {kind}: {name}", "RevisionNotFound")
    hub.store.save(repo)
    return say({})


@route("POST", "/api/models/{repo}/preupload/{rev}", needs="write")
def preupload(hub: HubServer, request: Request, repo: Repo, rev: str) -> Answer:
    """How each file is to be sent, and the id of what is in its place now."""
    files, wanted, told = repo.find(rev)["files"], request.json(), []
    ignored = wanted.get("gitIgnore", hub.store.text(files, ".gitignore")).split()
    large = tracked(hub.store.text(files, ".gitattributes"))
    for file in wanted["files"]:
        path, there = file["path"], files.get(file["path"])
        binary = b"\0" in base64.b64decode(file["sample"])
        mode = "lfs" if file["size"] > LARGE or binary or matches(path, large) else "regular"
        oid = there and (there["sha256"] or there["oid"])
        told.append({"path": path, "uploadMode": mode, "shouldIgnore": matches(path, ignored), "oid": oid})
    return say({"files": told})


@route("POST", "/api/models/{repo}/commit/{rev}", needs="write")
def commit(hub: HubServer, request: Request, repo: Repo, rev: str) -> Answer:
    """On a branch or a pull request, or as a new pull request."""
    header, *operations = map(json.loads, request.body.read_bytes().splitlines())
    summary, head, pull = header["value"], repo.find(rev), request.asks("create_pr")
    ref = next((name for name in (f"refs/heads/{rev}", rev) if name in repo.refs), None)
    if pull:
        ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repo.refs)}"
    if not ref:
        raise Refusal(400, f"{rev} is not a branch")
    if not head["id"].startswith(summary.get("parentCommit") or ""):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    made = hub.store.commit(repo, head, operations, summary["summary"], summary.get("description", ""))
    repo.refs[ref] = made["id"]
    hub.store.save(repo)
    url = f"{hub.endpoint}/{repo.id}"
    told = {"success": True, "commitOid": made["id"], "commitUrl": f"{url}/commit/{made['id']}", "hookOutput": ""}
    return say(told | ({"pullRequestUrl": f"{url}/discussions/{ref.rsplit('/', 1)[1]}"} if pull else {}))


@route("GET", "/{repo}/(?P<how>resolve|raw)/{rev}/{path}")
def file(hub: HubServer, request: Request, repo: Repo, how: str, rev: str, path: str) -> Answer:
    """A small file, the way to a large one, or as `raw` its pointer."""
    commit = repo.find(rev)
    entry = repo.entry(commit, path)
    headers = {"X-Repo-Commit": commit["id"], "ETag": f'"{entry["oid"]}"'}
    if not entry["sha256"]:
        return Answer(hub.store.content(entry), headers=headers)
    if how == "raw":
        return Answer(pointer(entry), headers=headers)
    linked = {"X-Linked-Etag": f'"{entry["sha256"]}"', "X-Linked-Size": str(entry["size"])}
    return Answer(status=302, headers={**headers, **linked, "Location": f"{hub.storage}/{entry['sha256']}"})


# Large files. Their addresses need no token, as signed ones do not: who has one may use it.


@route("POST", r"/{repo}\.git/info/lfs/objects/batch", needs="write")
def batch(hub: HubServer, request: Request, repo: Repo) -> Answer:
    """Where to send what. A file that is there already has no actions."""
    wanted, told, transfer = request.json(), [], "basic"
    for item in wanted["objects"]:
        sha256, size = item["oid"], item["size"]
        told.append({"oid": sha256, "size": size})
        if (hub.store.root / "lfs" / sha256).is_file():
            continue
        upload: Json = {"href": f"{hub.storage}/{sha256}"}
        if "multipart" in wanted.get("transfers", []) and size > hub.part_size:
            transfer = "multipart"
            parts = range(1, -(-size // hub.part_size) + 1)
            upload["header"] = {f"{part:05}": f"{hub.storage}/{sha256}/{part}" for part in parts}
            upload["header"]["chunk_size"] = str(hub.part_size)
            upload["href"] = f"{hub.endpoint}/storage/{sha256}/complete"
        told[-1]["actions"] = {"upload": upload, "verify": {"href": f"{hub.endpoint}/{repo.id}.git/info/lfs/verify"}}
    return say({"transfer": transfer, "objects": told})


@route("POST", r"/{repo}\.git/info/lfs/verify", needs="write")
def verify(hub: HubServer, request: Request, repo: Repo) -> Answer:
    wanted = request.json()
    if hub.store.large(wanted["oid"])["size"] != wanted["size"]:
        raise Refusal(400, f"{wanted['oid']} is not of {wanted['size']} bytes")
    return say({})


@route("GET", "/storage/{sha256}", needs="nothing")
def download(hub: HubServer, request: Request, sha256: str) -> Answer:
    return Answer(hub.store.content(hub.store.large(sha256)), headers={"ETag": f'"{sha256}"'})


@route("PUT", "/storage/{sha256}", needs="nothing")
def upload(hub: HubServer, request: Request, sha256: str) -> Answer:
    hub.store.keep_large(request.body, sha256)
    return Answer(headers={"ETag": f'"{sha256}"'})


@route("PUT", "/storage/{sha256}/{part}", needs="nothing")
def upload_part(hub: HubServer, request: Request, sha256: str, part: str) -> Answer:
    path = request.body.replace(hub.store.root / "incoming" / f"{sha256}.{part}")
    return Answer(headers={"ETag": f'"{sha256_of(path)}"'})


@route("POST", "/storage/{sha256}/complete", needs="nothing")
def complete(hub: HubServer, request: Request, sha256: str) -> Answer:
    """Parts become the file; the tags that their uploads were answered with must be theirs."""
    parts = {hub.store.root / "incoming" / f"{sha256}.{p['partNumber']}": p["etag"] for p in request.json()["parts"]}
    for path, etag in parts.items():
        if not path.is_file() or etag.strip('"') != sha256_of(path):
            raise Refusal(400, f"InvalidPart: {path.name}")
    with request.body.open("wb") as whole:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole, BLOCK)
            path.unlink()
    return upload(hub, request, sha256)


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        self.hub, self.stopped = hub, False
        super().__init__(("127.0.0.1", hub.port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break, here also on purpose; whatever else goes wrong is answered by 500."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets: the second would wait for an acknowledgement
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:
        """`requests` of the server is the log."""

    def serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        if self.server.stopped:  # on a connection that the client has kept
            self.close_connection = True
            return
        hub.requests.append((self.command, self.path))
        fault = hub.fault(self.command, self.path)
        broken = fault is not None and fault.status is None
        number, name = tempfile.mkstemp(dir=hub.store.root / "incoming")
        try:
            with os.fdopen(number, "wb") as body:
                if not self._receive(body.write, half=broken and fault is not None and not fault.late):
                    self.close_connection = True
                    return
            request = Request(self.command, url.path, parse_qs(url.query), self.headers, Path(name))
            self._send(self._answer(request, fault), half=broken)
        finally:
            Path(name).unlink(missing_ok=True)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def _answer(self, request: Request, fault: Fault | None) -> Answer:
        failed = Refusal(fault.status, "Failed on request") if fault and fault.status else None
        try:
            if failed and fault and not fault.late:
                raise failed
            answer = self.server.hub.answer(request)
            if failed:
                raise failed
            return answer
        except Refusal as refusal:
            return refuse(refusal)
        except Exception as error:
            traceback.print_exc()
            return refuse(Refusal(500, f"{type(error).__name__}: {error}"))

    def _receive(self, write: Callable[[bytes], Any], half: bool) -> bool:
        """Hand the request's body to `write`; whether that was all of it."""
        size = int(self.headers.get("Content-Length", 0))
        left = size // 2 if half else size
        while left and (block := self.rfile.read(min(BLOCK, left))):
            write(block)
            left -= len(block)
        return not left and not (half and size)

    def _send(self, answer: Answer, half: bool) -> None:
        body, status, headers = answer.body, answer.status, dict(answer.headers)
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        start, end = 0, size
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and status == 200:
            start, end = _range(asked[1], asked[2], size)
            status = 206 if start < end else 416
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}" if start < end else f"bytes */{size}"
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        if half:
            self.close_connection = True
            end -= (end - start + 1) // 2
            if start == end or self.command == "HEAD":
                return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes):
            self.wfile.write(body[start:end])
            return
        with body.open("rb") as file:
            file.seek(start)
            while start < end:
                start += self.wfile.write(file.read(min(BLOCK, end - start)))


def _range(first: str, last: str, size: int) -> tuple[int, int]:
    """Start and end of `first-last`, of which either may be missing; empty if outside of `size`."""
    if not first:
        return max(0, size - int(last)), size
    return min(int(first), size), min(int(last or size) + 1, size)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a rehearsal Hub from a folder until interrupted.")
    parser.add_argument("root", type=Path, help="folder of its repositories; made if missing")
    parser.add_argument("--port", type=int, default=0, help="a free one if not given")
    parser.add_argument("--token", help="the token that may write; any if not given")
    arguments = parser.parse_args()
    with HubServer(arguments.root, port=arguments.port, write_token=arguments.token) as hub:
        print(*(f"{name}={value}" for name, value in hub.env.items()), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
