"""What paid calls cost and what they said: an intent before each attempt, its result after it, on the disk.

An account (a run) may never be charged more than its budget: the dearest that a call can be is reserved before it is
made and settled after, and where nobody knows what became of it (a timeout, a cut connection, a process killed in
mid-call) the reserve is the charge. So at every instant: what the provider bills <= what the ledger says <= the budget.
The last does not hold for calls already under way when a provider first bills more tokens than it was allowed to
answer; from then on so many are reserved.
A reply is kept for every account: whoever asks the same question again reads it and pays nothing.

Money is in whole nano-dollars (1e-9 USD): a price of 1 USD for a million tokens is 1000 of them a token, and no sum
is rounded. All writes go through one thread, which commits in one transaction whatever has gathered meanwhile: a
hundred calls at once wait for the disk once. What is left out: making calls (`judges.client`).
"""

import asyncio
import contextlib
import json
import math
import queue
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import store
from pipeline.errors import DataError
from pipeline.records import canonical

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, charged INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS calls (id INTEGER PRIMARY KEY, account TEXT NOT NULL, step TEXT NOT NULL,"
    " judge TEXT NOT NULL, key TEXT NOT NULL, attempt INTEGER NOT NULL, created REAL NOT NULL,"
    " reserved INTEGER NOT NULL, outcome TEXT, charged INTEGER, tokens_in INTEGER, tokens_out INTEGER, seconds REAL)",
    "CREATE INDEX IF NOT EXISTS calls_by_key ON calls (key)",
    "CREATE INDEX IF NOT EXISTS calls_without_an_end ON calls (account) WHERE outcome IS NULL",
    "CREATE TABLE IF NOT EXISTS makings (call INTEGER PRIMARY KEY, making TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS batches (account TEXT NOT NULL, key TEXT NOT NULL, call INTEGER NOT NULL,"
    " batch TEXT, PRIMARY KEY (account, key))",
)

Write = Callable[[sqlite3.Connection], Any]


class Result(NamedTuple):
    """How an attempt ended."""

    outcome: str
    """One of `judges.replies.Outcome`."""
    charge: int | None
    """Nano-dollars. None: nobody knows, so what was reserved."""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    reply: Any = None
    """What to keep of the answer, JSON-ready. None: there is none, and the question may be asked again."""


class Spent(NamedTuple):
    """One line of an account's bill."""

    step: str
    judge: str
    calls: int
    failed: int
    """Attempts without a reply, those that nobody knows the end of included."""
    tokens_in: int
    tokens_out: int
    usd: float


class Ledger:
    """The books of one account, in the journal's file; several processes may keep them at once."""

    def __init__(
        self,
        path: Path | None,
        account: str,
        step: str = "",
        judge: str = "",
        budget: float | None = None,
        making: str = "",
    ):
        """Args:
        path: the journal. None: a file that is gone when this is.
        account: who pays.
        step, judge: for whom, on the bill.
        budget: US dollars. None: no limit.
        making: which of the times that the step is made, by this judge and then by another (`bill`).
        """
        self._temporary = tempfile.TemporaryDirectory() if path is None else None
        self.path = path or Path(str(self._temporary.name if self._temporary else "")) / "ledger.sqlite"
        self.account, self.step, self.judge, self.making = account, step, judge, making
        self.budget = None if budget is None else math.floor(budget * NANO)
        self._reader: sqlite3.Connection | None = None
        self._writes: queue.SimpleQueue[tuple[Write, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    def reply(self, key: str) -> Any:
        """What was answered to this question, whoever asked; None if nobody was.

        That it was declined is final for the account that was told so; another one may ask again.
        """
        with _explained(self.path):
            self._reader = self._reader or self._connect()
            row = self._reader.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            row = (
                row
                or self._reader.execute(
                    "SELECT json_object('outcome', outcome, 'tokens_in', tokens_in, 'tokens_out', tokens_out, 'cost',"
                    " charged) FROM calls WHERE key = ? AND account = ? AND outcome IN ('refused', 'filtered')",
                    (key, self.account),
                ).fetchone()
            )
        return None if row is None else json.loads(row[0])

    def charged(self) -> int:
        """Nano-dollars that the account was charged so far, reserves of calls under way included."""
        with _explained(self.path):
            self._reader = self._reader or self._connect()
            row = self._reader.execute("SELECT charged FROM accounts WHERE name = ?", (self.account,)).fetchone()
        return int(row[0])

    def most_out(self) -> int:
        """Most tokens of a reply to this judge that cost more than was reserved for it; 0: none did."""
        with _explained(self.path):
            self._reader = self._reader or self._connect()
            row = self._reader.execute(
                "SELECT max(tokens_out) FROM calls WHERE charged > reserved AND account = ? AND judge = ?",
                (self.account, self.judge),
            ).fetchone()
        return int(row[0] or 0)

    def at_work(self, seconds: float) -> bool:
        """True if calls of this account are under way anywhere, so that some of their reserves may come back.

        Args:
            seconds: after which a call without an end is taken for one whose process died.
        """
        with _explained(self.path):
            self._reader = self._reader or self._connect()
            row = self._reader.execute(
                "SELECT count(*) FROM calls WHERE outcome IS NULL AND account = ? AND created > ?",
                (self.account, time.time() - seconds),
            ).fetchone()
        return bool(row[0])

    async def reserve(self, key: str, attempt: int, amount: int) -> int | None:
        """Set nano-dollars aside for one attempt; its number, or None if the account has not that much left."""

        def write(connection: sqlite3.Connection) -> int | None:
            enough = "" if self.budget is None else f" AND charged + {amount:d} <= {self.budget:d}"
            update = f"UPDATE accounts SET charged = charged + ? WHERE name = ?{enough}"
            if connection.execute(update, (amount, self.account)).rowcount == 0:
                return None
            call = connection.execute(
                "INSERT INTO calls (account, step, judge, key, attempt, created, reserved)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self.account, self.step, self.judge, key, attempt, time.time(), amount),
            ).lastrowid
            # Not a column of calls: the journals that there are have none.
            connection.execute("INSERT INTO makings VALUES (?, ?)", (call, self.making))
            return call

        found: int | None = await self._written(write)
        return found

    async def settle(self, call: int, key: str, reserved: int, result: Result) -> None:
        """Say how an attempt ended, and keep its reply. When this returns, both survive a power cut.

        An attempt ends once: whoever waited for the same batch and comes later changes nothing.
        """
        charged = reserved if result.charge is None else result.charge

        def write(connection: sqlite3.Connection) -> None:
            ended = connection.execute(
                "UPDATE calls SET outcome = ?, charged = ?, tokens_in = ?, tokens_out = ?, seconds = ?"
                " WHERE id = ? AND outcome IS NULL",
                (result.outcome, charged, result.tokens_in, result.tokens_out, round(result.seconds, 4), call),
            ).rowcount
            if ended and charged != reserved:
                connection.execute(
                    "UPDATE accounts SET charged = charged + ? WHERE name = ?", (charged - reserved, self.account)
                )
            if result.reply is not None:
                row = (key, canonical(result.reply))
                connection.execute("INSERT INTO replies VALUES (?, ?) ON CONFLICT DO NOTHING", row)

        await self._written(write)

    # ---- calls that are answered hours later, by another process perhaps

    def under_way(self, keys: Sequence[str]) -> dict[str, tuple[int, int, str | None]]:
        """(call, reserve, batch) of those questions that are in a batch, or were being put into one.

        The batch is its number, or the name that it was to be made under while nobody has written its number down.
        """
        with _explained(self.path):
            self._reader = self._reader or self._connect()
            rows = self._reader.execute(
                "SELECT b.key, b.call, c.reserved, b.batch FROM batches b JOIN calls c ON c.id = b.call"
                " WHERE b.account = ? AND c.outcome IS NULL AND b.key IN (SELECT value FROM json_each(?))",
                (self.account, json.dumps(list(keys))),
            ).fetchall()
        return {key: (call, reserve, batch) for key, call, reserve, batch in rows}

    async def put_in_batch(self, calls: Mapping[str, int], batch: str) -> None:
        """These questions are in this batch, or will be: its number, or its name before it has one."""

        def write(connection: sqlite3.Connection) -> None:
            rows = [(self.account, key, call, batch) for key, call in calls.items()]
            connection.executemany("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)", rows)

        await self._written(write)

    def close(self) -> None:
        """Let go of the file, after what was handed in is written."""
        if self._writer is not None:
            self._writes.put(None)
            self._writer.join()
            self._writer = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # ---- one thread writes

    async def _written(self, write: Write) -> Any:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, name="ledger", daemon=True)
            self._writer.start()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._writes.put((write, future))
        return await future

    def _write_all(self) -> None:
        connection: sqlite3.Connection | None = None
        while (first := self._writes.get()) is not None:
            batch = [first, *self._waiting()]
            try:
                with _explained(self.path):
                    connection = connection or self._connect()
                results = self._results(connection, [write for write, _ in batch])
            except Exception as error:  # whatever it is: if this thread ended, all would wait for ever
                results = [error] * len(batch)
            loop = first[1].get_loop()
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, [future for _, future in batch], results)
        if connection is not None:
            connection.close()

    def _results(self, connection: sqlite3.Connection, writes: Sequence[Write]) -> list[Any]:
        """What these writes return, all in one transaction, or the error that each of them ends in.

        Where one of them cannot be done, each gets a transaction of its own: the replies of the others are paid for.
        """
        try:
            with _explained(self.path), connection:
                connection.execute("BEGIN IMMEDIATE")
                return [write(connection) for write in writes]
        except DataError as error:  # of the file, so that it is the same for all
            return [error] * len(writes)
        except Exception as error:
            if len(writes) == 1:
                return [error]
            return [result for write in writes for result in self._results(connection, [write])]

    def _waiting(self) -> Iterator[tuple[Write, asyncio.Future[Any]]]:
        while True:
            try:
                job = self._writes.get_nowait()
            except queue.Empty:
                return
            if job is None:
                self._writes.put(None)
                return
            yield job

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self.path)
        with connection:
            connection.execute("INSERT INTO accounts VALUES (?, 0) ON CONFLICT DO NOTHING", (self.account,))
        return connection


def connect(path: Path) -> sqlite3.Connection:
    """The journal's file with the ledger's tables in it."""
    return store.open_database(path, SCHEMA, threads=True)


def bill(path: Path, account: str, making: str | None = None) -> list[Spent]:
    """What an account was charged, by step and judge.

    Args:
        making: of a step. None: of all.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.exists():
        return []
    with _explained(path), contextlib.closing(connect(path)) as connection:
        rows = connection.execute(
            "SELECT step, judge, count(*), sum(outcome IS NULL OR outcome != 'ok'), sum(coalesce(tokens_in, 0)),"
            " sum(coalesce(tokens_out, 0)), sum(coalesce(charged, reserved)) FROM calls WHERE account = ?1"
            " AND (?2 IS NULL OR id IN (SELECT call FROM makings WHERE making = ?2))"
            " GROUP BY step, judge ORDER BY min(id)",
            (account, making),
        ).fetchall()
    return [
        Spent(step, judge, calls, failed, tokens_in, tokens_out, nano / NANO)
        for step, judge, calls, failed, tokens_in, tokens_out, nano in rows
    ]


def _resolve(futures: Sequence[asyncio.Future[Any]], results: Sequence[Any]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.cancelled():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"{path}: the ledger cannot be used ({error}); nothing more is asked, for its cost and answer could not be "
            "kept. Make room or mend the disk, then run the same command again"
        ) from error
