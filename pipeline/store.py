"""All file operations of the project, in one place so that they can be tested against lost power.

A file is replaced whole or not at all. A directory appears under its final name only when every byte of it is on the
disk, with a `MANIFEST.json` that holds the hash of each file. A journal entry that was acknowledged is never lost.
`tests/pipeline/test_crash_images.py` cuts the power after every single operation and looks at what is left.

What is left out: what the bytes mean (`pipeline.records`) and which directory is whose (`pipeline.run`).
"""

import contextlib
import difflib
import fcntl
import gzip
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import DataError
from pipeline.records import Record, canonical, digest

MANIFEST = "MANIFEST.json"
"""The file that is written last into a published directory. No directory without it was ever finished."""

JOURNAL = "journal.sqlite"
"""What was asked and answered, and what it cost, in the cache beside the runs."""

VOTES = "annotations.sqlite"
"""People's votes, which nothing can make again: no directory is replaced that holds them."""

SHOWN = 10
"""Mistakes of one file that are spelled out; the rest are counted."""

R = TypeVar("R", bound=Record)


class Disk:
    """The operations whose order decides what a power cut leaves behind.

    Nothing is safe before `sync`: not the bytes of a file, and not its name in the directory that holds it.
    """

    def create(self, path: Path, chunks: Iterable[bytes]) -> None:
        """A new file. Raises FileExistsError rather than write into one that is there."""
        with open(path, "xb") as file:
            file.writelines(chunks)

    def sync(self, path: Path) -> None:
        """Return when the bytes of this file, or the names in this directory, are on the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or directory another name at once. A file that has the name already is replaced."""
        os.replace(source, target)

    def mkdir(self, path: Path) -> None:
        """A new, empty directory in one that exists."""
        os.mkdir(path)

    def remove(self, path: Path) -> None:
        """Take away a file, or a directory with all that is in it."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


DISK = Disk()
"""The real one. Tests hand in others that record, or that fail."""


def make_dirs(path: Path, disk: Disk = DISK) -> None:
    """The directory and its missing parents, each of them safe on the disk when this returns.

    Raises:
        DataError: a file has the name of one of them.
    """
    if path.is_dir():
        return
    make_dirs(path.parent, disk)
    try:
        disk.mkdir(path)
    except FileExistsError as error:
        if not path.is_dir():  # otherwise another process made it in the meantime
            raise DataError(
                f"{path}: a file is in the way, and a folder is to be there; move it away, or name another folder"
            ) from error
    disk.sync(path.parent)


def remove(path: Path, disk: Disk = DISK) -> None:
    """Take away a file or a directory. It is no mistake if there is none."""
    with contextlib.suppress(FileNotFoundError):
        disk.remove(path)


def move(source: Path, target: Path, disk: Disk = DISK) -> None:
    """Give a file another name, which is safe on the disk when this returns."""
    disk.rename(source, target)
    disk.sync(target.parent)
    disk.sync(source.parent)


def write_bytes(path: Path, chunks: Iterable[bytes], disk: Disk = DISK) -> None:
    """Replace the file by one with these bytes; whoever reads it sees the old or the new one, whole, at any time.

    Raises:
        OSError: the disk refused. The old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        disk.create(temporary, chunks)
        disk.sync(temporary)
        disk.rename(temporary, path)
    except BaseException:
        # Also for Ctrl-C and for an iterator that raises: a half-written file must not stay under any name.
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise
    disk.sync(path.parent)


def write_text(path: Path, text: str, disk: Disk = DISK) -> None:
    """`write_bytes` of the text in UTF-8, with its line ends as they are."""
    write_bytes(path, [text.encode()], disk)


def write_json(path: Path, value: Any, disk: Disk = DISK) -> None:
    """`write_text` of `pretty(value)`."""
    write_text(path, pretty(value), disk)


def pretty(value: Any) -> str:
    """JSON for people: indented, keys sorted, no NaN, a newline at the end."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- records, one a line


def write_jsonl(path: Path, records: Iterable[Record], disk: Disk = DISK) -> None:
    """Replace the file by one with these records, one a line, in order. Equal records are equal bytes."""
    write_bytes(path, (line(record).encode() + b"\n" for record in records), disk)


def read_jsonl(path: Path, record: type[R], where: Callable[[Any], bool] | None = None) -> Iterator[R]:
    """The records of a JSONL file in order; `.gz` is unpacked, a byte order mark and blank lines are skipped.

    Nothing more is yielded after the first bad line, but the rest of the file is read for more of them.

    Args:
        where: told the JSON of each line; those of which it says False are passed over, whatever else is in them. For
            files of our own, whose lines have what it looks at.

    Raises:
        DataError: with `file:line: what was found; what to do` for each bad line, at the end of the file.
    """
    problems: list[str] = []
    count = 0
    for number, line in _lines(path):
        try:
            told = json.loads(line.decode(), parse_constant=_refuse_constant)
            if where is not None and not where(told):
                continue
            item = record.model_validate(told)
        except ValueError as error:
            count += 1
            if count <= SHOWN:
                problems.append(f"{path}:{number}: {_explain(error, line, record)}")
            continue
        if not problems:
            yield item
    if count > SHOWN:
        problems.append(f"and {count - SHOWN} more")
    if problems:
        raise DataError("\n".join(problems))


def count_lines(path: Path) -> int:
    """How many records a JSONL file has, without reading them."""
    return sum(1 for _ in _lines(path))


def line(record: Record) -> str:
    # Fields in the order of their declaration. What is None or an empty mapping is the default and says nothing.
    fields = record.model_dump(mode="json", exclude_none=True)
    kept = {name: value for name, value in fields.items() if value != {}}
    return json.dumps(kept, ensure_ascii=False, allow_nan=False)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers. Split at LF only: U+2028 is a character of a text."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: cannot be unpacked ({error}); make the file again") from error
    except OSError as error:
        raise DataError(
            f"{path}:{number + 1}: cannot be read ({error.strerror}); check what it is and who may"
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number; leave the field out")


def _explain(error: ValueError, line: bytes, record: type[Record]) -> str:
    if isinstance(error, ValidationError):
        found = "; ".join(_explain_field(each, record) for each in error.errors()[:3])
        instead = [f"{short} in the place of {name}" for short, name in record.ALIASES.items()]
        return f"{found}. The fields of a {record.__name__} are {', '.join([*record.model_fields, *instead])}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {line[error.start]:#04x} at column {error.start + 1} is not UTF-8; save the file as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        if not line.endswith(b"\n"):
            return f"the file ends inside this line ({error.msg}): it was cut short; make it again"
        return f"not JSON ({error.msg} at column {error.colno}); put one object on each line"
    return str(error)


def _explain_field(error: ErrorDetails, record: type[Record]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), [*record.model_fields, *record.ALIASES], n=1)
        return f"{where}: no such field" + (f", did you mean {near[0]!r}?" if near else "")
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


# ---- directories that are finished or not there


def publish(staging: Path, final: Path, manifest: Mapping[str, Any], disk: Disk = DISK) -> None:
    """Rename a finished directory to its final name, with `manifest` and the hash of every file inside it.

    If a sound directory with the same `manifest` is there already, someone finished first and `staging` is dropped;
    a damaged or another one is replaced.

    Raises:
        ValueError: `staging` holds a link, whose target nobody vouches for.
        DataError: `final` would be replaced, and holds people's votes.
        OSError: the disk refused. `final` is as it was, or gone; it is never half of something.
    """
    seal(staging, manifest, disk)
    make_dirs(final.parent, disk)
    if final.exists():
        if _holds(final, manifest):
            remove(staging, disk)
            return
        if (final / VOTES).exists():
            raise DataError(
                f"{final / VOTES}: the directory has to be made again, and people's votes are in it; prefloop annotate "
                f"{final} --export FILE moves them to a safe place. Then run the same command again"
            )
        remove(final, disk)
    disk.rename(staging, final)
    disk.sync(final.parent)


def seal(directory: Path, manifest: Mapping[str, Any], disk: Disk = DISK) -> None:
    """Write MANIFEST.json with `manifest` and the hash of every file, after every file is safe on the disk.

    Raises:
        ValueError: the directory holds a link, whose target nobody vouches for.
    """
    # Deepest first, and each directory after its files: a name is safe only when what it names is.
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_symlink():
            raise ValueError(f"{path}: a link cannot be published; copy what it points to")
        disk.sync(path)
    sealed = {**manifest, "files": _inventory(directory)}
    write_json(directory / MANIFEST, {**sealed, "digest": digest(sealed, 64)}, disk)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """What `publish` wrote: the given fields, `files`, and `digest` over both. None if it is missing or damaged."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        found = manifest.pop("digest")
        sound = found == digest(manifest, 64) and isinstance(manifest["files"], dict)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return {**manifest, "digest": found} if sound else None


def published(step: Path) -> list[Path]:
    """The published directories in a folder, by name."""
    return sorted(path for path in step.glob("*") if path.is_dir() and read_manifest(path) is not None)


def verify(directory: Path, *, hashes: bool) -> list[str]:
    """What is wrong with a published directory; nothing if it is as it was published.

    Without `hashes` only names and sizes are compared, which takes milliseconds. Files that are not in the manifest
    are no problem: desktops leave their own in folders that people look at.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return [f"{MANIFEST} is missing or damaged"]
    found = (_problem(directory / name, name, entry, hashes) for name, entry in manifest["files"].items())
    return [problem for problem in found if problem]


def strangers(directory: Path) -> list[str]:
    """Names of the files in a published directory that were not published with it."""
    manifest = read_manifest(directory) or {"files": {}}
    return [name for name in _files(directory) if name not in manifest["files"]]


def hashes(directory: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file in a directory; without reading them if it is a published one."""
    manifest = read_manifest(directory)
    files = manifest["files"] if manifest else _inventory(directory)
    return {name: entry["sha256"] for name, entry in files.items()}


def _inventory(directory: Path) -> dict[str, Any]:
    return {
        name: {"size": path.stat().st_size, "sha256": sha256_file(path)} for name, path in _files(directory).items()
    }


def _files(directory: Path) -> dict[str, Path]:
    """Name -> path of every file but the manifest, by name."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path != directory / MANIFEST)
    return {path.relative_to(directory).as_posix(): path for path in files}


def _holds(directory: Path, manifest: Mapping[str, Any]) -> bool:
    present = read_manifest(directory) or {}
    given = {name: value for name, value in present.items() if name not in ("files", "digest")}
    return given == manifest and not verify(directory, hashes=True)


def _problem(path: Path, name: str, entry: Mapping[str, Any], hashes: bool) -> str | None:
    if not path.is_file():
        return f"{name} is missing"
    if (size := path.stat().st_size) != entry["size"]:
        return f"{name} has {size} bytes instead of {entry['size']}"
    if hashes and sha256_file(path) != entry["sha256"]:
        return f"{name} has other bytes than were written"
    return None


# ---- what was paid for


class Journal:
    """Answers that must not be asked for twice: (kind, key) -> JSON, shared by runs and by processes.

    The first value of a key is final; later ones are kept out, so that what was read once stays true. When `put_many`
    returns, the rows survive a power cut. The file is SQLite in WAL mode and belongs on a local disk: WAL does not
    work over a network. It is opened at first use, and serves the thread that opened it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    def get_many(self, kind: str, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that are there.

        Raises:
            DataError: the journal cannot be read.
        """
        wanted = json.dumps(list(keys))
        with self._open() as connection:
            rows = connection.execute(
                "SELECT key, value FROM entries WHERE kind = ? AND key IN (SELECT value FROM json_each(?))",
                (kind, wanted),
            ).fetchall()
        return {key: json.loads(value) for key, value in rows}

    def put_many(self, kind: str, rows: Mapping[str, Any]) -> None:
        """Keep these values, all or none. A key that has a value keeps the one it has.

        Raises:
            DataError: the journal cannot be written. Stop then: what comes next could not be kept either.
        """
        now = time.time()
        values = [(kind, key, canonical(value), now) for key, value in rows.items()]
        with self._open() as connection:
            # The write lock is taken at the start: a read that wants to become a write would not wait for it.
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", values)

    def count(self, kind: str, keys: Iterable[str]) -> int:
        """How many of those keys have a value.

        Raises:
            DataError: the journal cannot be read.
        """
        wanted = json.dumps(list(keys))
        with self._open() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM entries WHERE kind = ? AND key IN (SELECT value FROM json_each(?))",
                (kind, wanted),
            ).fetchone()
        return int(count)

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection, inside a transaction's commit or rollback, with its errors made ours."""
        if self._connection is not None and self._owner != os.getpid():
            raise RuntimeError(f"{self.path}: this journal was opened before a fork; give each process its own")
        try:
            if self._connection is None:
                self._connection, self._owner = self._connect(), os.getpid()
            with self._connection:
                yield self._connection
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path}: the journal cannot be used ({error}); make room or mend the disk, "
                "or move the file away: its answers are then asked for again"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        return open_database(self.path, [ENTRIES])


ENTRIES = (
    "CREATE TABLE IF NOT EXISTS entries (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,"
    " created REAL NOT NULL, PRIMARY KEY (kind, key))"
)


def open_database(path: Path, tables: Iterable[str], *, threads: bool = False) -> sqlite3.Connection:
    """A SQLite file in WAL mode, made if need be with these tables; what is committed survives a power cut.

    Args:
        tables: statements that make them where they are not there.
        threads: let a thread use it that did not open it.
    """
    make_dirs(path.parent)
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=not threads)
    connection.execute("PRAGMA synchronous = FULL")
    # SQLite does not wait its turn when two processes switch a new file to WAL at once: one gets "locked".
    with open(path.with_name(path.name + ".lock"), "a") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        connection.execute("PRAGMA journal_mode = WAL")
        with connection:
            # The write lock is taken at the start: a read that wants to become a write would not wait for it.
            connection.execute("BEGIN IMMEDIATE")
            for table in tables:
                connection.execute(table)
    return connection
