"""What a killed evaluation leaves behind: one line a finished batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """Finished batches by (stage, number), appended to a file as JSON lines, so that any kill loses one batch at most.

    The first line is the fingerprint of what is evaluated; a file that was written for something else is refused.
    With `path=None` it lives in memory only.

    Raises:
        ValueError: the file belongs to another evaluation (the message names the differing entries), or is no journal.
    """

    def __init__(self, path: Path | None, fingerprint: Record) -> None:
        self.path = path
        self._done: dict[tuple[str, int], Record] = {}
        if path is None:
            return
        if path.exists() and path.stat().st_size:
            self._read(path, fingerprint)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(fingerprint) + "\n")

    @property
    def finished(self) -> list[tuple[str, int]]:
        """(stage, number) of every batch that is done."""
        return list(self._done)

    def get_or_run(self, stage: str, batch: int, run: Callable[[], Record]) -> Record:
        """The record of this batch: from the file, or else computed by `run` and written down."""
        key = stage, batch
        if key not in self._done:
            self._done[key] = run()
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"stage": stage, "batch": batch, **self._done[key]}) + "\n")
        return self._done[key]

    def _read(self, path: Path, fingerprint: Record) -> None:
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        try:
            found, *records = [json.loads(line) for line in whole.splitlines()]
            self._done = {(record.pop("stage"), record.pop("batch")): record for record in records}
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a resume file of an evaluation: choose another name, or delete it"
            ) from error
        wanted = json.loads(json.dumps(fingerprint))  # tuples become lists, as in the file
        other = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
        if other:
            listed = "; ".join(f"{key} {_get(found, key)} there, {wanted[key]} here" for key in other)
            raise ValueError(
                f"{path} belongs to another evaluation ({listed}): choose another state file, or delete it"
            )
        if torn:  # the process died while it wrote this line
            with path.open("r+b") as file:
                file.truncate(len(whole) + 1)


def _get(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, dict) else found
