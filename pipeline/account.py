"""Whose account the paid calls of a run are charged to, and whether the journal beside the run knows that account.

The account is called as the directory in which the run began, and the run's manifest.json keeps the name: a run that is
renamed goes on with what it was charged. A copy of a run has the same account, so the budget holds for both together,
as what the copy has of answers and labels was paid for there. Two of one account may ask at once, but not where
questions go into batches: each would take the other's for those of a process that died.

What is left out: the books (`judges.ledger`).
"""

import contextlib
import json
from pathlib import Path

from judges.ledger import bill
from pipeline import store
from pipeline.errors import DataError
from pipeline.store import JOURNAL

FILE = "manifest.json"
"""What of a run directory says whose account it is, under `account`."""


def name_of(directory: Path) -> str:
    """The account of a run: as its manifest says, or where that does not say it, as the directory is called now.

    That is the first time that a run is opened, and was always so of the directories made before the name was kept.

    Raises:
        DataError: the manifest is damaged.
    """
    path, called = directory / FILE, directory.absolute().name
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return called
    except ValueError:
        told = None
    name = told.get("account", called) if isinstance(told, dict) else None
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{path}: damaged, and it said whose account the run's paid calls are charged to; put it back from a copy, "
            f"or remove it: the account is then {called!r}, as the directory is called"
        )
    return name


def notice(directory: Path, cache: Path, account: str) -> str | None:
    """What to know of the account before anybody is asked; None: nothing that is not as it should be.

    Args:
        directory: the run's, as it was found.
        cache: in which its journal is.
    """
    return _lost(directory, cache, account) if (directory / FILE).exists() else _taken(cache, account)


def _taken(cache: Path, account: str) -> str | None:
    """Of a new run: that another one had its name."""
    usd = _charged(cache, account)
    if not usd:
        return None
    return (
        f"{cache / JOURNAL}: {usd:.4f} USD were charged to the account {account!r} before this run began, by one that "
        "had its name; budget_usd counts them too. For a budget of its own give the run a directory of another name"
    )


def _lost(directory: Path, cache: Path, account: str) -> str | None:
    """Of a run that goes on: that it was charged, and not in this journal."""
    if _charged(cache, account):
        return None
    usd, former = _spent(directory), _former(directory, cache)
    if not (usd or former):
        return None
    found = f"its steps were charged {usd:.4f} USD" if usd else "a step that it has begun was charged"
    there = f" (it is {former})" if former else ""
    return (
        f"{directory}: {found}, and {cache / JOURNAL} has no charge to its account, {account!r}: budget_usd begins at "
        "0, and what is not done is asked and paid for again. If the run was moved here, stop it and copy .cache from "
        f"beside where it was{there}; if there is a .cache here that others use, move the run with its own to a "
        f'directory apart. If it was renamed, write its former name into {FILE}, as "account"'
    )


def _spent(directory: Path) -> float:
    """US dollars that the published steps of a run were charged."""
    # Only here: it imports what reports are made of, and no command but one that does work comes here.
    from pipeline import provenance

    folders = (folder for step in (directory / "steps").glob("*") for folder in store.published(step))
    return sum(each.usd for folder in folders for each in provenance.spending(folder))


def _former(directory: Path, cache: Path) -> Path | None:
    """The cache elsewhere through which steps that are not done were charged; None: there is none that can be read."""
    for path in sorted((directory / ".staging").glob("*/job.json")):
        told = store.read_json(path)
        former = Path(told["cache"])
        # Another user's, or damaged: of no use to this run, and no reason to stop it.
        with contextlib.suppress(OSError, DataError):
            if former != cache and _charged(former, told["run"]):
                return former
    return None


def _charged(cache: Path, account: str) -> float:
    return sum(each.usd for each in bill(cache / JOURNAL, account))
