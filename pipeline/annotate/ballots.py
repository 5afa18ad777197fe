"""What people said, in a database that only grows: each vote, skip and undo is a row, and nothing is overwritten.

What counts of one person on one pair is the last row; all of them stay. A row is acknowledged when it would survive a
power cut (WAL, synchronous=FULL). The pairs are in the database too, so that votes outlive the step that made them.
Several processes may have the file open; each sees the rows of the others before it answers.

What is left out: who is asked what (`pipeline.annotate.desk`).
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline import store
from pipeline.annotate.material import Item, beside, database_of
from pipeline.errors import DataError
from pipeline.records import Pair, Sample, Vote

Said = Literal["a", "b", "tie", "skip", "undo"]
"""`skip`: this person does not want to say. `undo`: as if they had said nothing."""
Order = Literal["ab", "ba"]

TABLES = (
    "CREATE TABLE IF NOT EXISTS pairs (id TEXT PRIMARY KEY, pair TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, pair_id TEXT NOT NULL REFERENCES pairs (id),"
    " annotator TEXT NOT NULL, said TEXT NOT NULL, shown TEXT NOT NULL, sample TEXT NOT NULL, note TEXT NOT NULL,"
    " at TEXT NOT NULL)",
)


class Ballot(NamedTuple):
    """What one person said last about one pair."""

    seq: int
    """Its number among all events, from 1."""
    pair_id: str
    annotator: str
    said: Said
    shown: Order
    sample: Sample
    note: str
    at: str


class Ballots:
    """The votes in one database. May be used by several threads."""

    def __init__(self, path: Path) -> None:
        """Open it, made if need be.

        Raises:
            DataError: it cannot be opened.
        """
        self.path = path
        self._lock = threading.RLock()
        self._latest: dict[tuple[str, str], Ballot] = {}
        self._seq = 0
        try:
            self._connection = store.open_database(path, TABLES, threads=True)
            self._catch_up()
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._unusable(error) from error

    def standing(self) -> dict[tuple[str, str], Ballot]:
        """(annotator, pair id) -> what counts, in the order in which it was said; undone ones are not there.

        Raises:
            DataError: the database cannot be read.
        """
        with self._lock:
            try:
                self._catch_up()
            except sqlite3.DatabaseError as error:
                raise self._unusable(error) from error
            return dict(self._latest)

    def cast(self, item: Item, annotator: str, said: Said, shown: Order, note: str = "") -> None:
        """Keep what somebody said. When this returns, it survives a power cut.

        Raises:
            DataError: it could not be kept.
        """
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = (item.pair.id, annotator, said, shown, item.sample, note, at)
        with self._lock:
            try:
                with self._connection:
                    self._connection.execute("BEGIN IMMEDIATE")
                    self._connection.execute(
                        "INSERT INTO pairs VALUES (?, ?) ON CONFLICT DO NOTHING",
                        (item.pair.id, item.pair.model_dump_json()),
                    )
                    self._connection.execute(
                        "INSERT INTO events (pair_id, annotator, said, shown, sample, note, at)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?)",
                        row,
                    )
            except sqlite3.DatabaseError as error:
                raise self._unusable(error) from error

    def votes(self) -> Iterator[tuple[Pair, Vote, Sample]]:
        """Every vote that counts, pair by pair in the order of their first votes; skips are none."""
        by_pair: dict[str, list[Ballot]] = {}
        for ballot in self.standing().values():
            if ballot.said != "skip":
                by_pair.setdefault(ballot.pair_id, []).append(ballot)
        for name, ballots in by_pair.items():
            pair = self._pair(name)
            for each in ballots:
                yield pair, _vote(each), each.sample

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _pair(self, name: str) -> Pair:
        with self._lock:
            (found,) = self._connection.execute("SELECT pair FROM pairs WHERE id = ?", (name,)).fetchone()
        return Pair.model_validate_json(found)

    def _catch_up(self) -> None:
        rows = self._connection.execute(
            "SELECT seq, pair_id, annotator, said, shown, sample, note, at FROM events WHERE seq > ? ORDER BY seq",
            (self._seq,),
        )
        for ballot in map(Ballot._make, rows):
            self._seq = ballot.seq
            # Taken out first, so that what was said again is the last in order.
            self._latest.pop((ballot.annotator, ballot.pair_id), None)
            if ballot.said != "undo":
                self._latest[ballot.annotator, ballot.pair_id] = ballot

    def _unusable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: votes cannot be kept here ({error}); make room or mend the disk. "
            "What was acknowledged is in the file"
        )


def open_ballots(run: Path) -> Ballots:
    """The votes on a run, a folder or a file of pairs, made if need be.

    Those that an earlier version kept inside of a step's folder are moved to their place (`material.database_of`).

    Raises:
        DataError: they cannot be opened or moved.
    """
    database = database_of(run)
    _bring(beside(run), database)
    return Ballots(database)


def _bring(inside: Path, database: Path) -> None:
    if inside == database or not inside.is_file():
        return
    if database.exists():
        raise DataError(
            f"{inside} and {database}: both hold votes on these pairs; move the first into a folder of its own, export "
            "both (prefloop annotate FOLDER --export FILE), and name both files where votes are read"
        )
    try:
        with closing(sqlite3.connect(inside)) as connection:
            # One file, whose move is one step: the votes in the write-ahead log come into it. Fails while it is in use.
            (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode != "delete":
                raise sqlite3.OperationalError("database is locked")
        store.move(inside, database)
    except (sqlite3.DatabaseError, OSError) as error:
        raise DataError(
            f"{inside}: votes cannot be moved to {database} ({error}); end the page that has them open"
        ) from error


def _vote(ballot: Ballot) -> Vote:
    assert ballot.said not in ("skip", "undo")
    return Vote(
        pair_id=ballot.pair_id,
        annotator=ballot.annotator,
        choice=ballot.said,
        shown=ballot.shown,
        note=ballot.note,
        at=ballot.at,
    )
