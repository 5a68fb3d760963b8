"""Files that a crash never leaves half written; the ground floor, which everything above may use."""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or a folder beside `path`, and move it there once the disk has it.

    Whatever goes wrong, what was at `path` is left as it was, and what was made beside it is removed.

    Args:
        path: Where to; its folder is made if there is none.
        write: Gets the place beside `path`, `.NAME.partial`, where there is nothing yet.

    Raises:
        OSError: it cannot be written; of a full disk the errno is ENOSPC, whatever class of error the library under
            `write` has for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    _remove(aside)
    try:
        write(aside)
        put_in_place(aside, path)
    except Exception as error:
        if (number := _errno(error, path.parent)) is None:
            raise
        raise OSError(number, f"{path} cannot be written ({os.strerror(number)}): {error}") from error
    finally:
        _remove(aside)


def write_text(path: Path, text: str) -> None:
    """Write `text` as the whole of the file `path`, by `write_atomically`."""
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def put_in_place(aside: Path, path: Path) -> None:
    """Move the file or folder `aside` to `path`, which it replaces, once the disk has all of it.

    For what several processes write together: they write aside, and one of them calls this. A file is replaced in one
    move. A folder has to make room first: a crash in between leaves the former one beside it, as `.NAME.former`.
    """
    for written in (*aside.rglob("*"), aside):
        _share(written)
        _sync(written)
    former = path.with_name(f".{path.name}.former")
    if aside.is_dir() and path.is_dir():
        _remove(former)
        path.rename(former)
    try:
        os.replace(aside, path)
    except OSError:
        if former.exists():
            former.rename(path)
        raise
    _sync(path.parent)
    _remove(former)


def read_rows(path: Path, key: tuple[str, ...] = ("epoch",)) -> list[dict[str, Any]]:
    """The rows of a run's summary.jsonl, one an epoch in their order: the newest where a resume repeated one.

    A last line that a crash cut short is left out.

    Args:
        key: What tells rows apart and orders them, in another file than summary.jsonl.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another line is not a row, that is, a JSON object with `key`; it names file and line.
    """
    lines = path.read_bytes().split(b"\n")
    rows = {}
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None and row.keys() >= {*key}:
            rows[tuple(row[name] for name in key)] = row
        elif line.strip() and number < len(lines):
            wanted = f"a JSON object with {' and '.join(key)}"
            raise ValueError(f"{path}, line {number}: wanted {wanted}, got {line[:60]!r}: remove it")
    return [rows[each] for each in sorted(rows)]


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a line to what `read_rows` reads, in place of a last one that a crash cut short."""
    with path.open("a+b") as file:  # it writes at the end, wherever it has read
        file.seek(0)
        last = file.read().rpartition(b"\n")[2]
        if last and _row(last) is None:
            file.truncate(file.tell() - len(last))
        elif last:
            file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _errno(error: Exception, folder: Path) -> int | None:
    """The number that the system gave for what went wrong, if it was the system."""
    if isinstance(error, OSError):
        return error.errno
    # safetensors, which is written in Rust, has a class of its own and the number in its text.
    if said := re.search(r"os error (\d+)", str(error)):
        return int(said.group(1))
    # torch says nothing of the kind, so ask the disk.
    return errno.ENOSPC if shutil.disk_usage(folder).free < 1 << 20 else None


def _share(path: Path) -> None:
    """Give a file that its owner alone may read, as safetensors makes them, the rights of any other new file."""
    if os.name == "nt" or not path.is_file() or stat.S_IMODE(path.stat().st_mode) != stat.S_IRUSR | stat.S_IWUSR:
        return
    mask = os.umask(0)  # the one way to read it
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _sync(path: Path) -> None:
    """Wait until the disk has the file or the folder's list of files."""
    if os.name == "nt":
        return  # Windows does so for neither a folder nor a file that is opened to read
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
