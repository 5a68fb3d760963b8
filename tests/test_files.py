"""Files are whole or as they were, whatever goes wrong; rows of a run survive a crash in the middle of a line."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from timm_arat.files import append_row, put_in_place, read_rows, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def folder_of(text: str):
    """What writes a folder with one file in it."""

    def write(aside: Path) -> None:
        aside.mkdir()
        (aside / "file").write_text(text)

    return write


def test_a_file_and_a_folder_replace_what_was_there(tmp_path):
    for text in ("first", "second"):
        write_atomically(tmp_path / "new/file.txt", lambda aside, text=text: aside.write_text(text))
        write_atomically(tmp_path / "new/folder", folder_of(text))
        assert (tmp_path / "new/file.txt").read_text() == (tmp_path / "new/folder/file").read_text() == text
    assert names(tmp_path) == ["new", "new/file.txt", "new/folder", "new/folder/file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
@pytest.mark.parametrize("mask, rights", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_may_be_read_by_whom_the_umask_allows(tmp_path, mask, rights):
    """safetensors makes files that their owner alone may read."""

    def folder(aside: Path) -> None:
        aside.mkdir()
        save_file({"a": torch.zeros(1)}, aside / "a.safetensors")

    former = os.umask(mask)
    try:
        write_atomically(tmp_path / "alone.safetensors", lambda aside: save_file({"a": torch.zeros(1)}, aside))
        write_atomically(tmp_path / "folder", folder)
        assert os.umask(mask) == mask, "left as it was"
    finally:
        os.umask(former)
    for path in (tmp_path / "alone.safetensors", tmp_path / "folder/a.safetensors"):
        assert path.stat().st_mode & 0o777 == rights


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path, kind, error):
    def half(aside: Path) -> None:
        folder_of("half")(aside) if kind == "folder" else aside.write_text("half")
        raise error("stopped")

    whole = folder_of("whole") if kind == "folder" else lambda aside: aside.write_text("whole")
    write_atomically(tmp_path / "it", whole)
    before = names(tmp_path)
    with pytest.raises(error, match="stopped"):
        write_atomically(tmp_path / "it", half)
    assert names(tmp_path) == before
    assert (tmp_path / "it/file" if kind == "folder" else tmp_path / "it").read_text() == "whole"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_move_that_fails_leaves_what_was_there(tmp_path, kind, monkeypatch):
    write = folder_of if kind == "folder" else lambda text: lambda aside: aside.write_text(text)
    write_atomically(tmp_path / "it", write("whole"))
    before = names(tmp_path)

    def fail(*_):
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        write_atomically(tmp_path / "it", write("new"))
    assert caught.value.errno == errno.EIO
    assert names(tmp_path) == before


def test_a_file_does_not_replace_a_folder(tmp_path):
    write_atomically(tmp_path / "it", folder_of("whole"))
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "it", lambda aside: aside.write_text("new"))
    assert names(tmp_path) == ["it", "it/file"]


def test_a_crash_between_the_two_moves_of_a_folder_is_repaired_by_the_next(tmp_path):
    folder_of("whole")(tmp_path / ".it.former")
    folder_of("new")(tmp_path / "aside")
    put_in_place(tmp_path / "aside", tmp_path / "it")
    assert (tmp_path / "it/file").read_text() == "new" and names(tmp_path) == ["it", "it/file"]


def test_the_system_s_number_is_found_in_the_errors_of_safetensors(tmp_path):
    """As when a disk is full: the system refuses to make a file larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_atomically(tmp_path / "it", lambda aside: save_file({"small": torch.zeros(1)}, aside))
    before = (tmp_path / "it").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="cannot be written") as caught:
            write_atomically(tmp_path / "it", lambda aside: save_file({"large": torch.zeros(1 << 20)}, aside))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "it").read_bytes() == before and names(tmp_path) == ["it"]


def test_a_library_that_says_nothing_is_believed_where_the_disk_is_full(tmp_path, monkeypatch):
    def write(aside: Path) -> None:
        raise RuntimeError("unexpected pos")  # torch.save's words for a full disk

    with pytest.raises(RuntimeError, match="unexpected pos"):
        write_atomically(tmp_path / "it", write)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "it", write)
    assert caught.value.errno == errno.ENOSPC


def test_rows_are_one_an_epoch_the_newest_where_one_is_repeated(tmp_path):
    for epoch, value in ((1, "a"), (2, "b"), (3, "c"), (2, "d")):
        append_row(tmp_path / "rows", {"epoch": epoch, "value": value})
    assert read_rows(tmp_path / "rows") == [
        {"epoch": 1, "value": "a"},
        {"epoch": 2, "value": "d"},
        {"epoch": 3, "value": "c"},
    ]


@pytest.mark.parametrize("torn", ['{"epoch": 2, "val', '{"epoch": 2', "{"])
def test_a_last_line_that_a_crash_cut_short_is_dropped_and_replaced(tmp_path, torn):
    path = tmp_path / "rows"
    path.write_text('{"epoch": 1}\n' + torn)
    assert read_rows(path) == [{"epoch": 1}]
    append_row(path, {"epoch": 2})
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_a_last_row_without_its_newline_counts_and_stays(tmp_path):
    path = tmp_path / "rows"
    path.write_text('{"epoch": 1}')
    assert read_rows(path) == [{"epoch": 1}]
    append_row(path, {"epoch": 2})
    assert read_rows(path) == [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize("line", ['{"epoch": 2, "val', "[1]", '{"loss": 1.0}'])
def test_an_unreadable_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "summary.jsonl"
    path.write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 3}}\n')
    with pytest.raises(ValueError, match=r"summary\.jsonl, line 2: wanted a JSON object with epoch"):
        read_rows(path)


def test_rows_that_are_not_there_are_no_empty_run(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "summary.jsonl")
