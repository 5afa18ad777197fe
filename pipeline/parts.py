"""What one task of a job array finds out, in a file of its own, until a run takes it into the journal.

Tasks run on machines that share a directory over a network, where the journal (SQLite in WAL mode) must not be written
by several. So each appends to its own file, a line a row:

    {"kind": "answers", "key": "...", "sha256": "of kind, key and value", "value": ...}

When `put_many` returns, the lines are on the disk. A line that was cut short, or that two attempts at one task wrote
into each other, does not have its hash and is passed over: its row is missing, and is found out again. Nor does a task
read the journal: what that has from another run is found out again too, and the first value stays. What is left out:
who does which share (`pipeline.generate`) and who starts the tasks (`pipeline.cli_slurm`).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.errors import DataError
from pipeline.records import canonical, digest

FOLDER = "parts"
"""Where they are, in the work directory of a step."""


class Part:
    """The rows of one task: the three verbs of `store.Journal`, on a file that this process alone writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = {(kind, key): value for kind, key, value in rows(path)}

    def get_many(self, kind: str, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that are there."""
        return {key: self._rows[kind, key] for key in keys if (kind, key) in self._rows}

    def count(self, kind: str, keys: Iterable[str]) -> int:
        """How many of those keys have a value."""
        return len(self.get_many(kind, keys))

    def put_many(self, kind: str, found: Mapping[str, Any]) -> None:
        """Append these values.

        Raises:
            DataError: the file cannot be written.
        """
        lines = [_line(kind, key, value) for key, value in found.items()]
        try:
            self._append("".join(lines).encode())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); make room or mend the disk") from error
        self._rows |= {(kind, key): value for key, value in found.items()}

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _append(self, lines: bytes) -> None:
        new = not self.path.exists()
        if new:
            store.make_dirs(self.path.parent)
        with open(self.path, "ab") as file:
            # What a kill cut short is left as it is, and ended, so that it does not spoil the line after it.
            file.write(lines if _ends_a_line(self.path) else b"\n" + lines)
            file.flush()
            os.fsync(file.fileno())
        if new:
            store.DISK.sync(self.path.parent)


def rows(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Kind, key and value of each sound line of a part; none if there is no such file."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            told = json.loads(line)
            kind, key, value = told["kind"], told["key"], told["value"]
            sound = told["sha256"] == digest([kind, key, value], 64)
        except (ValueError, KeyError, TypeError):
            continue
        if sound:
            yield kind, key, value


def merge(folder: Path, journal: store.Journal) -> None:
    """Take every part in a folder into the journal; what that has already stays as it is.

    Raises:
        DataError: the journal cannot be written.
    """
    for path in sorted(folder.glob("*.jsonl")):
        found: dict[str, dict[str, Any]] = {}
        for kind, key, value in rows(path):
            found.setdefault(kind, {})[key] = value
        for kind, values in found.items():
            journal.put_many(kind, values)


def _line(kind: str, key: str, value: Any) -> str:
    return canonical({"kind": kind, "key": key, "value": value, "sha256": digest([kind, key, value], 64)}) + "\n"


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        return not size or file.read(1) == b"\n"
