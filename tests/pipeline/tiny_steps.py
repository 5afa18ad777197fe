"""Steps small enough to run in milliseconds, for the tests of the run engine. They import nothing heavy at the top.

`generate` copies words from a data file, `label` gives each word its length, `report` adds them up. With ranks, the
lengths come from `ask` through the journal. Each call leaves its name in the file `trace`: a test can see what ran.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from judges.ledger import NANO, Ledger, Result, bill
from pipeline.errors import BudgetError, DataError
from pipeline.worker import Job, tell


def _trace(job: Job, name: str) -> None:
    with open(job.options["trace"], "a") as file:
        file.write(f"{name}\n")


def generate(job: Job) -> None:
    _trace(job, "generate")
    words = job.files[0].read_text().split()
    (job.out / "words.json").write_text(json.dumps(words + job.options.get("noise", [])))


def environment(job: Job) -> None:
    """What the process of a step finds set."""
    (job.out / "environment.json").write_text(json.dumps(dict(os.environ)))


def label(job: Job) -> None:
    _trace(job, "label")
    time.sleep(job.options.get("pause", 0))
    words = json.loads((job.inputs["generate"] / "words.json").read_text())
    _write_lengths(job, {word: len(word) * job.identity["judge"]["scale"] for word in words})


def ask(job: Job) -> None:
    """Every `world`-th word is this rank's, and is asked for once in the life of the journal."""
    from pipeline.store import Journal

    _trace(job, f"ask {job.rank}")
    (job.work_dir / f"pid-{job.rank}").write_text(str(os.getpid()))
    words = json.loads((job.inputs["generate"] / "words.json").read_text())
    journal = Journal(job.cache / "journal.sqlite3")
    for word in words[job.rank :: job.world]:
        if not journal.count("length", [word]):
            time.sleep(job.options.get("pause", 0))
            journal.put_many("length", {word: len(word) * job.identity["judge"]["scale"]})


def collect(job: Job) -> None:
    from pipeline.store import Journal

    _trace(job, "collect")
    words = json.loads((job.inputs["generate"] / "words.json").read_text())
    found = Journal(job.cache / "journal.sqlite3").get_many("length", words)
    _write_lengths(job, {word: found[word] for word in words})


def _write_lengths(job: Job, lengths: dict[str, int]) -> None:
    (job.out / "lengths.json").write_text(json.dumps(lengths))


def report(job: Job) -> None:
    _trace(job, "report")
    lengths = json.loads((job.inputs["label"] / "lengths.json").read_text())
    (job.out / "public").mkdir()
    (job.out / "public" / "report.md").write_text(f"{sum(lengths.values())}\n")
    (job.out / "summary.json").write_text(json.dumps({"words": len(lengths)}))


def refuse(job: Job) -> None:
    raise DataError("words.txt:3: not a word; write one")


def crash(job: Job) -> None:
    raise ZeroDivisionError("a defect of ours")


def rank_1_crashes(job: Job) -> None:
    (job.work_dir / f"pid-{job.rank}").write_text(str(os.getpid()))
    if job.rank == 1:
        deadline = time.monotonic() + 5
        while not (job.work_dir / "pid-0").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        sys.exit(7)
    time.sleep(60)


def nothing(job: Job) -> None:
    pass


def half_then_whole(job: Job) -> None:
    """Killed the first time in the middle of filling `out`; the second time it shows what it found."""
    attempts = job.work_dir / "attempts"
    attempts.write_text(attempts.read_text() + "again" if attempts.exists() else "first")
    left = sorted(path.name for path in job.out.iterdir())
    (job.out / "half").write_text("half")
    if attempts.read_text() == "first":
        os.kill(os.getpid(), 9)
    (job.out / "half").unlink()
    (job.out / "found").write_text(json.dumps([attempts.read_text(), left]))


def edits_its_data(job: Job) -> None:
    Path(job.files[0]).write_text("other words")


def talks(job: Job) -> None:
    print(f"rank {job.rank} says hello", flush=True)


def pays(job: Job) -> None:
    """Asks for each of its words, for a dollar of a budget of three; dies before what the option says."""
    journal = job.cache / "journal.sqlite"

    async def ask(ledger: Ledger, word: str) -> None:
        call = await ledger.reserve(word, 0, NANO)
        if call is None:
            raise BudgetError(f"{word}: the budget is spent")
        await ledger.settle(call, word, NANO, Result("ok", NANO, reply={"text": word}))

    ledger = Ledger(journal, job.run, job.step, "judge", budget=3, making=job.making)
    for word in job.identity["words"]:
        if word == job.options.get("dies before"):
            raise ZeroDivisionError
        if ledger.reply(word) is None:
            asyncio.run(ask(ledger, word))
    ledger.close()
    tell(job, spending=[line._asdict() for line in bill(journal, job.run, job.making)])


def says_whose_account(job: Job) -> None:
    job.work_dir.mkdir(exist_ok=True)
    (job.work_dir / f"account-{job.rank}").write_text(job.run)
