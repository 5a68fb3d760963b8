"""The loopback Hub (tests/hub_server.py), by the unmodified huggingface_hub: what is sent comes back or is refused."""

import base64
import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import yaml
from helpers_hub import HubClient
from hub_server import HubServer
from hub_store import matches, metadata

CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd as Add, CommitOperationCopy as Copy, CommitOperationDelete as Delete
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import *

api, repo = HfApi(), "tester/model"

def add(path, content):
    return Add(path, content if isinstance(content, (bytes, Path)) else content.encode())

def commit(*operations, **settings):
    return api.create_commit(repo, operations, **{"commit_message": "a commit"} | settings)

def read(path, **where):
    return Path(hf_hub_download(repo, path, **where)).read_bytes()

def refusal(function, *arguments, **settings):
    try:
        function(*arguments, **settings)
    except Exception as error:
        cause = error if isinstance(error, HfHubHTTPError) else error.__cause__
        return [type(error).__name__, getattr(getattr(cause, "response", None), "status_code", None)]
    return None
"""
MODEL = "/api/models/tester/model"
CARD = """---
license: apache-2.0
library_name: timm
pipeline_tag: image-classification
tags: [robust]
model-index:
- name: model
  results:
  - task: {type: image-classification}
    dataset: {type: cifar10, name: CIFAR-10}
    metrics:
    - {type: accuracy, value: 51.3, name: AutoAttack}
---
# A model
"""


def run(hub: HubClient, script: str, *arguments: object, **env: str):
    """What a script with the client printed, as JSON where it is."""
    said = hub.run(CLIENT + script, *arguments, **env)
    return json.loads(said) if said else None


def asked(hub: HubClient, method: str, text: str = "") -> int:
    """How many requests of a kind the server has had."""
    return sum(one == method and text in path for one, path in hub.server.requests)


def post(hub: HubClient, path: str, body: str):
    """What the server answers to a client that checks nothing before."""
    headers = {"Authorization": "Bearer hf_write"}
    request = urllib.request.Request(hub.server.endpoint + path, body.encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.fixture
def repo(hub):
    """A server with an empty repository, tester/model."""
    hub.server.store.create("tester/model", private=False)
    return hub


@pytest.fixture
def big(tmp_path) -> Path:
    """11 MB, large for its size alone."""
    path = tmp_path / "big.txt"
    path.write_bytes(os.urandom(1_000_000).hex().encode() * 5 + b"0123456789" * 100_000)
    return path


def test_a_repository_is_created_once_and_deleted_once(hub):
    said = run(
        hub,
        """
url = api.create_repo(repo)
print(json.dumps([
    api.whoami()["name"], url, refusal(api.create_repo, repo), api.create_repo("model", exist_ok=True),
    api.list_repo_files(repo), api.delete_repo(repo), api.repo_exists(repo), refusal(api.delete_repo, repo),
    api.delete_repo(repo, missing_ok=True), refusal(api.create_repo, "tester/data", repo_type="dataset"),
]))
""",
    )
    url = f"{hub.server.endpoint}/tester/model"
    taken, missing = ["HfHubHTTPError", 409], ["RepositoryNotFoundError", 404]
    assert said == [
        "tester", url, taken, url, [".gitattributes"], None, False, missing, None, ["BadRequestError", 400]
    ]  # fmt: skip


@pytest.mark.parametrize("part_size, puts", [(4 << 20, 3), (1 << 30, 1)], ids=["multipart", "basic"])
def test_small_and_large_files_come_back_byte_for_byte(repo, big, part_size, puts):
    repo.server.part_size = part_size
    said = run(
        repo,
        """
big = Path(sys.argv[1])
made = commit(add("config.json", "{}"), add("a folder/big.txt", big), add("empty", ""), add("a.png", b"PNG\\0"))
info = api.model_info(repo, files_metadata=True)
assert read("config.json") == b"{}" and read("a folder/big.txt") == big.read_bytes()
assert read("empty") == b"" and read("a.png") == b"PNG\\0" and made.oid == info.sha
assert b"a.png filter=lfs" in read(".gitattributes")  # as the Hub notes large files that no pattern names
files = {file.rfilename: [file.size, file.blob_id, file.lfs and file.lfs.sha256] for file in info.siblings}
tree = {file.path: [file.size, file.blob_id, file.lfs and file.lfs.sha256]
        for file in api.list_repo_tree(repo, recursive=True, expand=True) if hasattr(file, "size")}
assert files == tree == {file.path: [file.size, file.blob_id, file.lfs and file.lfs.sha256]
                         for file in api.get_paths_info(repo, list(files))}
print(json.dumps(files))
""",
        big,
    )
    content = big.read_bytes()
    assert said["config.json"] == [2, hashlib.sha1(b"blob 2\0{}").hexdigest(), None]  # `git hash-object`
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
    oid = hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()
    assert said["a folder/big.txt"] == [len(content), oid, sha256]
    assert said["a.png"][2] and not said["empty"][2]
    assert asked(repo, "PUT") == puts + 1
    assert asked(repo, "POST", "/complete") == (puts > 1)
    assert not list((repo.server.store.root / "incoming").iterdir())


def test_storage_refuses_content_of_another_name(repo):
    name = hashlib.sha256(b"announced").hexdigest()
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(f"{repo.server.storage}/{name}", b"another", method="PUT"))
    assert not list((repo.server.store.root / "lfs").iterdir())


def test_of_a_commit_all_is_done_or_nothing(repo):
    said = run(
        repo,
        """
head = api.model_info(repo).sha
refused = refusal(commit, add("a", "1"), add("b", "2"), Delete("missing"))
assert api.model_info(repo).sha == head and api.list_repo_files(repo) == [".gitattributes"]
commit(add("a", "1"), add("b/c", "2"), commit_message="two", commit_description="files")
top, first = api.list_repo_commits(repo)
assert (top.title, top.message, top.authors, first.commit_id) == ("two", "files", ["tester"], head)
tree = api.list_repo_tree(repo, expand=True)
print(json.dumps([refused, {file.path: file.last_commit.title for file in tree}]))
""",
    )
    assert said == [["RemoteEntryNotFoundError", 404], {".gitattributes": "initial commit", "a": "two", "b": "two"}]


def test_a_commit_without_change_is_none_and_sends_nothing(repo):
    upload = """
folder = Path("model")
folder.mkdir(exist_ok=True)
(folder / "model.safetensors").write_bytes(b"weights")
(folder / "config.json").write_text("{}")
print(json.dumps([api.upload_folder(repo_id=repo, folder_path=folder).oid, len(api.list_repo_commits(repo))]))
"""
    once = run(repo, upload)
    assert once[1] == 2 and run(repo, upload) == once
    assert asked(repo, "PUT") == asked(repo, "POST", "/commit/") == 1
    lines = [{"key": "header", "value": {"summary": "the same"}}]
    lines += [{"key": "file", "value": {"path": "config.json", "content": "e30=", "encoding": "base64"}}]
    # Nor is it one if a client does not notice.
    assert post(repo, f"{MODEL}/commit/main", "\n".join(map(json.dumps, lines)))["commitOid"] == once[0]


def test_tags_and_branches_keep_their_commit(repo):
    run(
        repo,
        """
one = commit(add("a", "one")).oid
api.create_tag(repo, tag="v1")
api.create_branch(repo, branch="side/way", revision="v1")
two = commit(add("a", "two")).oid
commit(add("a", "aside"), revision="side/way")
for revision, content in {"v1": b"one", one: b"one", "main": b"two", two: b"two", "side/way": b"aside"}.items():
    assert read("a", revision=revision) == content, revision
refs = api.list_repo_refs(repo)
assert [(tag.name, tag.ref, tag.target_commit) for tag in refs.tags] == [("v1", "refs/tags/v1", one)]
assert {branch.name for branch in refs.branches} == {"main", "side/way"} and refs.pull_requests is None
assert refusal(api.create_tag, repo, tag="v1") == ["HfHubHTTPError", 409]
assert refusal(api.create_branch, repo, branch="side/way") == ["HfHubHTTPError", 409]
api.create_tag(repo, tag="v1", exist_ok=True)
assert refusal(api.create_tag, repo, tag="v2", revision="nowhere") == ["RevisionNotFoundError", 404]
assert refusal(api.delete_branch, repo, branch="main") == ["HfHubHTTPError", 403]
api.delete_branch(repo, branch="side/way")
api.delete_tag(repo, tag="v1")
assert refusal(api.delete_tag, repo, tag="v1") == refusal(read, "a", revision="v1") == ["RevisionNotFoundError", 404]
assert refusal(commit, add("a", "three"), revision=one) == ["BadRequestError", 400]
""",
    )


def test_a_snapshot_is_of_its_revision(repo):
    said = run(
        repo,
        """
commit(add("a", "one"), add("b/model.safetensors", b"1"))
api.create_tag(repo, tag="v1")
commit(add("a", "two"), Delete("b/model.safetensors"))
found = {}
for revision in ("main", "v1"):
    folder = Path(snapshot_download(repo, revision=revision, local_dir=revision))
    found[revision] = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*")
                       if path.is_file() and ".cache" not in path.parts and path.name != ".gitattributes"}
print(json.dumps(found))
""",
    )
    assert said == {"main": {"a": "two"}, "v1": {"a": "one", "b/model.safetensors": "1"}}


def test_what_is_missing_is_said_by_its_kind(repo):
    run(
        repo,
        """
def missing(*arguments, **settings):
    return refusal(hf_hub_download, *arguments, **settings)
assert missing(repo, "missing") == ["RemoteEntryNotFoundError", 404]
assert missing(repo, ".gitattributes", revision="nowhere") == ["RevisionNotFoundError", 404]
assert missing("tester/nothing", "a") == ["RepositoryNotFoundError", 404]
assert missing("tester/nothing", "a", token=False) == ["RepositoryNotFoundError", 401]
assert api.file_exists(repo, ".gitattributes") and not api.file_exists(repo, "missing")
assert refusal(lambda: list(api.list_repo_tree(repo, "missing"))) == ["RemoteEntryNotFoundError", 404]
assert api.get_paths_info(repo, ["missing"]) == []
""",
    )


def test_a_commit_on_another_parent_is_refused(repo):
    said = run(
        repo,
        """
old = api.model_info(repo).sha
new = commit(add("a", "1"), parent_commit=old).oid
refused = refusal(commit, add("a", "2"), parent_commit=old)
assert read("a") == b"1"
commit(add("a", "2"), parent_commit=new[:7])
print(json.dumps([refused, read("a").decode()]))
""",
    )
    assert said == [["HfHubHTTPError", 412], "2"]


def test_commits_at_once_are_done_one_after_the_other(repo):
    said = run(
        repo,
        """
from concurrent.futures import ThreadPoolExecutor
def both(function):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(function, range(4)))
both(lambda i: commit(add(f"{i}", "1")))
assert set("0123") < set(api.list_repo_files(repo)) and len(api.list_repo_commits(repo)) == 5
head = api.model_info(repo).sha
print(json.dumps(both(lambda i: refusal(commit, add("same", str(i)), parent_commit=head))))
""",
    )
    assert Counter(map(str, said)) == {"None": 1, "['HfHubHTTPError', 412]": 3}


def test_a_pull_request_leaves_main_alone(repo):
    run(
        repo,
        """
head = api.model_info(repo).sha
one, two = [commit(add("a", content), create_pr=True, parent_commit=head) for content in ("one", "two")]
assert (one.pr_num, two.pr_revision, two.pr_url) == (1, "refs/pr/2", f"{api.endpoint}/{repo}/discussions/2")
assert api.model_info(repo).sha == head and not api.file_exists(repo, "a")
assert read("a", revision="refs/pr/1") == b"one" and read("a", revision="refs/pr/2") == b"two"
pulls = api.list_repo_refs(repo, include_pull_requests=True).pull_requests
assert {pull.ref: pull.target_commit for pull in pulls} == {"refs/pr/1": one.oid, "refs/pr/2": two.oid}
commit(add("a", "more"), revision="refs/pr/1")
assert read("a", revision="refs/pr/1") == b"more"
""",
    )


def test_files_are_deleted_and_copied(repo):
    run(
        repo,
        """
commit(add("a", "1"), add("b/c", "2"), add("b/d", "3"), add("x.safetensors", b"4"))
api.delete_file("a", repo)
commit(Copy("x.safetensors", "y.safetensors"), Copy("b/c", "c"))
assert read("y.safetensors") == b"4" and read("c") == b"2"
api.delete_folder("b", repo)
assert set(api.list_repo_files(repo)) == {".gitattributes", "c", "x.safetensors", "y.safetensors"}
assert refusal(api.delete_file, "b", repo) == ["RemoteEntryNotFoundError", 404]
""",
    )
    assert asked(repo, "PUT") == 1


def test_a_private_repository_does_not_exist_for_strangers(repo):
    run(
        repo,
        """
commit(add("a", "1"), add("x.safetensors", b"4"))
api.update_repo_settings(repo, private=True)
assert refusal(api.model_info, repo, token=False) == ["RepositoryNotFoundError", 401]
assert refusal(read, "a", token=False) == ["RepositoryNotFoundError", 401]
assert [info.id for info in api.list_models(search="MOD")] == [repo]
assert list(api.list_models(search="mod", token=False)) == list(api.list_models(search="other")) == []
assert api.model_info(repo, token="hf_read").private and read("x.safetensors", token="hf_read") == b"4"
api.update_repo_settings(repo, private=False)
assert not api.model_info(repo, token=False).private and read("a", token=False, force_download=True) == b"1"
api.create_repo("tester/secret", private=True)
assert api.model_info("tester/secret", expand=["private"]).private
""",
    )


@pytest.mark.parametrize("token, status", [("hf_wrong", 401), ("hf_read", 403), (None, 401)], ids=str)
def test_only_the_write_token_writes(repo, token, status):
    said = run(
        repo,
        """
api = HfApi(token=json.loads(sys.argv[1]))
calls = [
    lambda: api.create_repo("tester/other"), lambda: api.delete_repo(repo), lambda: commit(add("a", "1")),
    lambda: api.create_tag(repo, tag="v1"), lambda: api.update_repo_settings(repo, private=True),
]
refused = [refusal(call)[1] for call in calls]
print(json.dumps([refused, refusal(api.model_info, repo)]))
""",
        json.dumps(token or False),
    )
    assert said == [[status] * 5, ["HfHubHTTPError", 401] if token == "hf_wrong" else None]
    (left,) = repo.server.store.repos()
    assert len(left.commits) == len(left.refs) == 1 and not left.private


def test_a_full_storage_takes_no_more(repo):
    repo.server.store.quota = 1000
    said = run(
        repo,
        """
commit(add("x.safetensors", b"x" * 900))
print(json.dumps([refusal(commit, add("y.safetensors", b"y" * 101), add("z", "1")), api.list_repo_files(repo)]))
""",
    )
    assert said == [["RuntimeError", 507], [".gitattributes", "x.safetensors"]]


def test_what_arrived_before_a_failure_is_not_sent_again(repo):
    """The client itself repeats an upload that breaks off, and not a commit."""
    upload = """
files = [add("x.safetensors", b"x" * 3_000_000), add("y.safetensors", b"y" * 3_000_000), add("z", "1")]
print(json.dumps([refusal(commit, *files), api.list_repo_files(repo)]))
"""
    repo.server.fail("PUT", hashlib.sha256(b"y" * 3_000_000).hexdigest(), status=None)
    repo.server.fail("POST", "/commit/", status=None)
    assert run(repo, upload) == [["RemoteProtocolError", None], [".gitattributes"]]
    assert asked(repo, "PUT") == 3
    assert run(repo, upload) == [None, [".gitattributes", "x.safetensors", "y.safetensors", "z"]]
    assert asked(repo, "PUT") == 3


@pytest.mark.parametrize("status, name", [(None, "RemoteProtocolError"), (500, "HfHubHTTPError")], ids=str)
def test_a_commit_whose_answer_was_lost_is_there(repo, status, name):
    repo.server.fail("POST", "/commit/", status=status, late=True)
    said = run(
        repo,
        """
lost = refusal(commit, add("a", "1"))
there = api.file_exists(repo, "a")
print(json.dumps([lost, there, refusal(commit, add("a", "1")), len(api.list_repo_commits(repo))]))
""",
    )
    assert said == [[name, status], True, None, 2]


def test_a_busy_server_is_asked_again(repo):
    repo.server.fail("POST", "/preupload/", status=503)
    repo.server.fail("GET", "/tree/", status=500)
    run(repo, 'commit(add("a", "1")); assert read("a") == b"1"; assert "a" in api.list_repo_files(repo)')
    assert asked(repo, "POST", "/preupload/") == 2


def test_a_download_that_broke_off_goes_on_where_it_was(repo, big):
    upload = 'api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo="big.txt", repo_id=repo)'
    run(repo, upload, big)
    repo.server.fail("GET", "/storage/", status=None)
    repo.server.requests.clear()
    run(repo, 'assert read("big.txt") == Path(sys.argv[1]).read_bytes()', big)
    assert asked(repo, "GET", "/storage/") == 2
    content, url = big.read_bytes(), f"{repo.server.storage}/{hashlib.sha256(big.read_bytes()).hexdigest()}"
    for asked_for, part in {"0-0": content[:1], "5-": content[5:], "-7": content[-7:], "9-11": content[9:12]}.items():
        request = urllib.request.Request(url, headers={"Range": f"bytes={asked_for}"})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 206 and answer.read() == part
            assert answer.headers["Content-Range"].endswith(f"/{len(content)}")
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={len(content)}-"}))


def test_state_outlives_the_server(tmp_path):
    seen = []
    script = """
print(json.dumps([api.model_info(repo).sha, read("x.safetensors").decode(), read("a", revision="v1").decode()]))
"""
    for first in (True, False):
        with HubServer(tmp_path / "hub") as server:
            client = HubClient(server, tmp_path / f"client-{first}")
            client.folder.mkdir()
            if first:
                make = 'api.create_repo(repo); commit(add("a", "1"), add("x.safetensors", b"2"))'
                run(client, f'{make}; api.create_tag(repo, tag="v1"); commit(add("a", "3"))')
            seen.append(run(client, script))
            kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            kept.request("GET", MODEL, headers={"Authorization": "Bearer hf_any"})
            assert json.load(kept.getresponse())["sha"] == seen[0][0]
        kept.auto_open = 0
        kept.request("GET", MODEL)  # a connection from before
        with pytest.raises(http.client.RemoteDisconnected):
            kept.getresponse()
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(server.endpoint)
    assert seen[0] == seen[1] and seen[0][1:] == ["2", "1"]


def test_a_card_is_checked_and_its_results_come_back(repo):
    said = run(
        repo,
        """
card = ModelCard(sys.argv[1])
card.validate()
card.push_to_hub(repo)
info = api.model_info(repo)
result, = info.card_data.eval_results
assert (result.dataset_name, result.metric_value, result.metric_name) == ("CIFAR-10", 51.3, "AutoAttack")
assert (info.library_name, info.pipeline_tag) == ("timm", "image-classification")
assert ModelCard.load(repo).data.to_dict() == card.data.to_dict()
bad = sys.argv[1].replace("value:", "worth:")
refused = [refusal(commit, add("README.md", bad))]
card.data.library_name = ["timm"]
refused += [refusal(card.validate), refusal(card.push_to_hub, repo)]
print(json.dumps([info.model_index, info.tags, refused, api.model_info(repo).sha == info.sha]))
""",
        CARD,
    )
    index = yaml.safe_load(CARD.split("---")[1])["model-index"]
    assert said[0] == index
    assert said[1] == ["timm", "image-classification", "robust", "license:apache-2.0"]
    assert said[2:] == [[["ValueError", 400], ["ValueError", None], ["ValueError", None]], True]
    lines = [{"key": "header", "value": {"summary": "unasked"}}]
    lines += [{"key": "file", "value": {"path": "README.md", "content": base64.b64encode(b"---\n- a\n---\n").decode()}}]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(repo, f"{MODEL}/commit/main", "\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize(
    "text, error",
    {
        "# no metadata": [],
        "---\n---\n": [],
        "---\ntags: [a, 1]\n---\n": ['"tags[1]" must be of type str'],
        "---\n- a\n---\n": ['"metadata" must be of type dict'],
        "---\nmodel-index: {}\n---\n": ['"model-index" must be of type list'],
        "---\nmodel-index: [{name: a}]\n---\n": ['"model-index[0].results" is required'],
        "---\nmodel-index: [{name: a, results: [{dataset: {type: b, name: c}, metrics: []}]}]\n---\n": [
            '"model-index[0].results[0].task" is required'
        ],
    }.items(),
)
def test_metadata_errors_say_where(text, error):
    assert metadata(text)[1] == error


def test_unreadable_metadata_is_an_error():
    data, (error,) = metadata("---\na: [\n---\n")
    assert data == {} and error.startswith("YAML parse error")


@pytest.mark.parametrize("path", ["a.pt", "deep/er/a.pt", "saved/x/y", "x/cache/z", "only/here"])
def test_git_patterns_match_names_paths_and_folders(path):
    assert matches(path, ["*.pt", "saved/**/*", "cache/", "/only/here"])
    assert not matches(f"{path}.txt", ["*.pt", "saved/x", "caches/", "only/he"]) or path.startswith("saved")


def test_ignored_files_stay_behind(repo):
    run(
        repo,
        """
commit(add(".gitignore", "*.log\\n"), add("a.log", "1"), add("b", "2"))
assert set(api.list_repo_files(repo)) == {".gitattributes", ".gitignore", "b"}
""",
    )


def test_the_script_serves_what_its_printed_settings_reach(tmp_path):
    command = [sys.executable, Path(__file__).with_name("hub_server.py"), tmp_path / "hub", "--token", "hf_mine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        try:
            assert process.stdout
            settings = dict(setting.split("=", 1) for setting in process.stdout.readline().split())
            client = HubClient(HubServer(tmp_path / "unused"), tmp_path)
            assert run(client, "print(json.dumps(api.create_repo(repo)))", **settings).endswith("/tester/model")
            assert run(client, 'print(json.dumps(refusal(api.whoami, "hf_other")))', **settings)[1] == 401
        finally:
            timer.cancel()
            process.terminate()
