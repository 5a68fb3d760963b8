"""One process group a folder: a lock that ends with the process that holds it, however that ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path, main: bool) -> Iterator[None]:
    """Hold the lock of `folder` inside; `main` says whether this is the process that holds it for its group.

    Where the system has no such locks (Windows), nothing is held.

    Raises:
        ValueError: another run holds it.
    """
    try:
        import fcntl
    except ImportError:
        main = False
    if not main:
        yield
        return
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{folder} is being trained by process {file.read().strip() or 'unknown'}: wait for it, stop it, or "
                "name another --output"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
