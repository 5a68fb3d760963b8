"""The way of a checkpoint's folder to the Hub: checked, in one commit, tagged; called again, it goes on."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError  # its client's, httpx or httpx2
from huggingface_hub.utils.sha import git_hash

from ..models._json import read_json
from ..models._secrets import without_password
from ..models._weights import RECORD, WEIGHTS
from ._agree import check_folder
from ._assemble import write_rendered
from ._card import render
from ._files import MARK, NAMES, check_plain, files

Operation = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class Published:
    """Where a checkpoint lies.

    Attributes:
        repo_id: ORG/NAME.
        revision: The commit, 40 hexadecimal digits; what `pretrained=True` is pinned to.
        sha256: Of model.safetensors.
        tag: The version, a tag of the commit; None for a pull request, which has no version yet.
        url: Of the commit or the pull request.
    """

    repo_id: str
    revision: str
    sha256: str
    tag: str | None
    url: str


def publish(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    private: bool = False,
    create_pr: bool = False,
    tag: str | None = None,
) -> Published:
    """Create or update the Hub repository of an assembled checkpoint (`assemble`), in one commit, and tag it.

    The files of a checkpoint in `folder` are sent, by name; others in it are not, and others in the repository stay.
    Files that it has already are not sent again, so a call after a failure goes on where that one stopped, and a call
    without a change makes no commit. The token is
    huggingface_hub's (`hf auth login`, or HF_TOKEN), HF_ENDPOINT chooses another server. Notes the commit and the
    weights' sha256 in `folder`/hub.json, which the registry reads.

    Args:
        folder: A folder that `assemble` wrote.
        repo_id: ORG/NAME; the one that the folder was assembled for if not given. For another one the card is
            rendered again.
        private: Make a new repository private; one that exists stays as it is.
        create_pr: Propose the commit as a pull request instead; each call opens one.
        tag: Version; v1, v2, ... if not given: the next one where something changed.

    Raises:
        ValueError: the folder was not evaluated, its results are of other weights or for another threat, its card is
            not what its JSON gives, one of its files is a link, the repository holds files of these names that are no
            checkpoint of ours, or the tag is taken by another commit.
        OSError: the Hub refused or could not be reached; nothing is half published, and the same call goes on.
    """
    folder = Path(folder)
    repo_id = check(folder, repo_id)
    card = render(folder, repo_id)
    api = HfApi(library_name="timm_arat")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        there = api.model_info(repo_id, files_metadata=True)
        head, at = there.sha, _tags(api, repo_id).get(tag or "")
        if at is not None and (at != head or not _is_there(folder, card, there)):
            raise ValueError(_taken(repo_id, str(tag)))
        commit = api.create_commit(
            repo_id,
            _operations(api, folder, card, repo_id, head),
            commit_message=f"{folder.name}, from timm_arat",
            create_pr=create_pr,
            # Of two publishers at once, the second is refused instead of mixing its files with the first's.
            parent_commit=head,
        )
        sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        if create_pr:
            return Published(repo_id, commit.oid, sha256, None, without_password(commit.pr_url or commit.commit_url))
        version, url = _tag(api, repo_id, commit.oid, tag), without_password(commit.commit_url)
        published = Published(repo_id, commit.oid, sha256, version, url)
    except (HTTPError, LocalTokenNotFoundError, ConnectionError) as error:
        raise OSError(_why_not(error, repo_id)) from error
    except RuntimeError as error:  # huggingface_hub wraps the error of a failed upload in one
        if error.__cause__ is None:
            raise
        raise OSError(_why_not(error.__cause__, repo_id)) from error
    write_rendered(folder, repo_id)
    (folder / RECORD).write_text(json.dumps(asdict(published), indent=1) + "\n")
    return published


def check(folder: Path, repo_id: str | None = None) -> str:
    """Refuse a folder that must not be published; returns the name of the repository that it would go to."""
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder} is not an assembled checkpoint: give a finished run, or assemble it first")
    assembled_for = read_json(check_plain(folder, RECORD)).get("repo_id")
    if not isinstance(assembled_for, str):
        raise ValueError(f"{folder / RECORD} names no repo_id: assemble the folder from its run again")
    files(folder)  # refuses links
    check_folder(folder)
    for name, text in render(folder, assembled_for).items():
        there = (folder / name).read_text() if (folder / name).is_file() else None
        if there != text:
            raise ValueError(
                f"{folder / name} is not what the JSON beside it gives{_difference(there, text)}: numbers are never "
                "written by hand. Change hub_cards/template.md or the JSON's source, and assemble again"
            )
    return repo_id or assembled_for


def _operations(api: HfApi, folder: Path, card: dict[str, str], repo_id: str, head: str | None) -> list[Operation]:
    """What brings the checkpoint in the repository up to `folder`, with the files in `card` as they are rendered there.

    Unchanged files are left out by the client.
    """
    mine = files(folder)
    theirs = api.list_repo_files(repo_id, revision=head)
    taken = [name for name in theirs if name in NAMES]
    if taken and not set(MARK) <= set(theirs):
        raise ValueError(
            f"{repo_id} holds {', '.join(taken)} and no checkpoint of this program: nothing there is replaced. Give "
            "another --repo-id, or take them away there"
        )
    gone = [name for name in taken if name not in mine]
    add = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=card[name].encode() if name in card else folder / name)
        for name in mine
    ]
    return [*add, *(CommitOperationDelete(path_in_repo=name) for name in gone)]


def _is_there(folder: Path, card: dict[str, str], there: ModelInfo) -> bool:
    """Whether the repository holds the checkpoint as it is in `folder`, so that publishing makes no commit."""
    remote = {file.rfilename: file for file in there.siblings or [] if file.rfilename in NAMES}
    for name in (mine := files(folder)):
        content = card[name].encode() if name in card else (folder / name).read_bytes()
        if (file := remote.get(name)) is None:
            return False
        if file.lfs["sha256"] != hashlib.sha256(content).hexdigest() if file.lfs else file.blob_id != git_hash(content):
            return False
    return len(mine) == len(remote)


def _tags(api: HfApi, repo_id: str) -> dict[str, str]:
    """The commits of the tags, by name."""
    return {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}


def _tag(api: HfApi, repo_id: str, commit: str, wanted: str | None) -> str:
    """Tag `commit` and return its tag; the one that it has already, if it has one."""
    tags = _tags(api, repo_id)
    if wanted is None:
        here = [name for name, target in tags.items() if target == commit]
        if here:
            return here[0]
        numbers = [int(name[1:]) for name in tags if name[:1] == "v" and name[1:].isdigit()]
        wanted = f"v{max(numbers, default=0) + 1}"
    if wanted not in tags:
        api.create_tag(repo_id, tag=wanted, revision=commit)
    elif tags[wanted] != commit:
        raise ValueError(_taken(repo_id, wanted))
    return wanted


def _taken(repo_id: str, tag: str) -> str:
    return f"{repo_id} has a tag {tag} on another commit: give another one, or none for the next"


def _difference(there: str | None, text: str) -> str:
    if there is None:
        return " (it is missing)"
    old, new = there.splitlines(), text.splitlines()
    line = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return f" (line {line + 1}: {(old[line] if line < len(old) else 'it ends')[:80]!r})"


def _why_not(error: BaseException, repo_id: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return (
            f"the Hub does not know you: call `hf auth login`, or set HF_TOKEN, with a token that may write {repo_id}"
        )
    if status == 403:
        return f"your token may not write {repo_id}: take one with write access, or another --repo-id"
    if status == 412:
        return f"somebody changed {repo_id} meanwhile: call this again to publish on top of it"
    said = without_password(" ".join(str(error).split()))[:300]
    return f"{repo_id} was not published ({said}): the same command goes on, what was sent already is not sent again"
