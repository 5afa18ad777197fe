"""A table with one row a pair: prompt, two answers, and the votes beside them. CSV, Parquet or JSON lines.

Votes are in columns `vote_1`, `vote_2` ... (or named by `columns`, `votes: alice+bob`), each an annotator by its name;
in counts `votes_a`, `votes_b`, `votes_tie` of nobody in particular; or in one column such as `winner`. An empty cell is
somebody who did not vote.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    BadRow,
    Ballot,
    Choice,
    Judged,
    Options,
    Row,
    Skip,
    answers,
    choice_of,
    column,
    number,
    packed,
    part,
    prompt_of,
    shown,
    vote_of,
)

CARRIES = frozenset({"ties", "votes"})

_VOTE = re.compile(r"(vote|rater|annotator|choice)_?\d+", re.IGNORECASE)
COUNTS: dict[str, Choice] = {"votes_a": "a", "votes_b": "b", "votes_tie": "tie"}


def recognise(rows: Sequence[Row]) -> float:
    """Two answers and votes, and no annotator of the row."""
    return 0.7 * part(rows, _is_pair)


def read(row: Row, options: Options) -> Iterator[Judged]:
    """All votes on one pair."""
    votes = tuple(_votes(row, options))
    if not votes:
        raise Skip("no vote")
    yield Judged(prompt_of(row, options), *answers(row, options), votes)


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """With counts: columns of names would be others in every file."""
    counts = {name: sum(vote.choice == choice for vote in item.votes) for name, choice in COUNTS.items()}
    yield {"prompt": packed(item.prompt), "response_a": item.a, "response_b": item.b, **counts}


def _is_pair(row: Row) -> bool:
    has = {what: column(row, what, Options()) is not None for what in ("prompt", "a", "b", "vote", "annotator")}
    several = any(_VOTE.fullmatch(str(name)) for name in row) or "votes_a" in row
    return has["prompt"] and has["a"] and has["b"] and (several or (has["vote"] and not has["annotator"]))


def _votes(row: Row, options: Options) -> Iterator[Ballot]:
    if "votes" in options.columns:
        names = options.columns["votes"].split("+")
        if missing := [name for name in names if name not in row]:
            raise BadRow(f"no column {missing[0]!r}: the row has {', '.join(map(str, row))}")
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
        yield Ballot(choice)


def _counted(row: Row) -> Iterator[Ballot]:
    for name, choice in COUNTS.items():
        count = number(row.get(name)) or 0.0
        if count < 0 or not count.is_integer():
            raise BadRow(f"{name}: {shown(row[name])} found; needs a whole number")
        yield from [Ballot(choice)] * int(count)
