"""A table with one row a pair: prompt, two answers, and the votes beside them. CSV, Parquet or JSON lines.

Votes are in columns `vote_1`, `vote_2` ... (or named by `columns`, `votes: alice+bob`), each an annotator by its name;
in counts `votes_a`, `votes_b`, `votes_tie` of nobody in particular; or in one column such as `winner`, where a column
of the annotator may say whose it is. An empty cell is somebody who did not vote.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    BadRow,
    Ballot,
    Choice,
    Judged,
    Named,
    Options,
    Row,
    Skip,
    answers,
    cell_of_answer,
    choice_of,
    column,
    has,
    number,
    packed,
    part,
    person,
    present,
    prompt_of,
    shown,
    vote_of,
)

CARRIES = frozenset({"ties", "votes"})

_VOTE = re.compile(r"(vote|rater|annotator|choice)_?\d+", re.IGNORECASE)
COUNTS: dict[str, Choice] = {"votes_a": "a", "votes_b": "b", "votes_tie": "tie"}


def recognise(rows: Sequence[Row], options: Options) -> float:
    """Two answers and votes, and no annotator of the row."""
    return 0.7 * part(rows, lambda row: _is_pair(row, options))


def read(row: Row, options: Options) -> Iterator[Judged]:
    """All votes on one pair."""
    votes = tuple(_votes(row, options))
    if not votes:
        raise Skip("no vote")
    yield Judged(prompt_of(row, options), *answers(row, options), votes)


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """With counts: columns of names would be others in every file."""
    counts = {name: sum(vote.choice == choice for vote in item.votes) for name, choice in COUNTS.items()}
    a, b = cell_of_answer(item.a), cell_of_answer(item.b)
    yield {"prompt": packed(item.prompt), "response_a": a, "response_b": b, **counts}


def _is_pair(row: Row, options: Options) -> bool:
    needed: tuple[Named, ...] = ("prompt", "a", "b")
    several = "votes" in options.columns or any(_VOTE.fullmatch(str(name)) for name in row) or "votes_a" in row
    voted = several or (has(row, "vote", options) and not has(row, "annotator", options))
    return voted and all(has(row, what, options) for what in needed)


def _votes(row: Row, options: Options) -> Iterator[Ballot]:
    who = column(row, "annotator", options)  # also where it does not count: a name that is not there is a mistake
    names: list[str] = []
    if "votes" in options.columns:
        names = [present(row, name) for name in options.columns["votes"].split("+")]
    elif "vote" in options.columns:
        pass  # what somebody named comes before what columns are usually called
    elif "votes_a" in row and "votes_b" in row:
        yield from _counted(row)
        return
    else:
        names = [name for name in row if _VOTE.fullmatch(str(name))]
    if names:
        for name in names:
            if (choice := choice_of(row[name], options)) is not None:
                yield Ballot(choice, annotator=name)
    elif (choice := vote_of(row, options)) is not None:
        yield Ballot(choice, annotator=None if who is None else person(row[who]))


def _counted(row: Row) -> Iterator[Ballot]:
    for name, choice in COUNTS.items():
        count = number(row.get(name)) or 0.0
        if count < 0 or not count.is_integer():
            raise BadRow(f"{name}: {shown(row[name])} found; needs a whole number")
        yield from [Ballot(choice)] * int(count)
