"""A table with one row a vote: prompt, two answers, who voted, and for which. CSV, Parquet or JSON lines.

Rows of one pair belong together by their texts, in whichever order they stand: an id of the file's own is not needed,
and one that two pairs share does no harm. `shown` (`ab` or `ba`), `strength`, `note`, `at` and
`sample` (`control` or `unsure`, as our own page writes it) may be there. A prompt that is a conversation is JSON in its
cell.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    IMPORTED,
    BadRow,
    Ballot,
    Judged,
    Named,
    Options,
    Row,
    Skip,
    answers,
    cell_of_answer,
    column,
    has,
    number,
    packed,
    part,
    person,
    prompt_of,
    shown,
    vote_of,
)
from pipeline.records import digest

CARRIES = frozenset({"ties", "votes", "annotators", "sources", "details"})


def recognise(rows: Sequence[Row], options: Options) -> float:
    """Two answers, one vote, and somebody who cast it."""
    if "votes" in options.columns:
        return 0.0  # the votes are in several columns
    needed: tuple[Named, ...] = ("prompt", "a", "b", "vote", "annotator")
    return 0.9 * part(rows, lambda row: all(has(row, each, options) for each in needed))


def read(row: Row, options: Options) -> Iterator[Judged]:
    """One vote a row."""
    choice = vote_of(row, options)
    if choice is None:
        raise Skip("no vote")
    who = column(row, "annotator", options)
    order = row.get("shown") or None
    if order not in (None, "ab", "ba"):
        raise BadRow(f"shown: {shown(order)} found; needs ab, ba or nothing")
    vote = Ballot(
        choice,
        annotator=None if who is None else person(row.get(who)),
        shown=order,
        strength=number(row.get("strength")),
        note=str(row.get("note") or ""),
        # Of a file that uses the word for something else, nothing.
        sample=row["sample"] if row.get("sample") in ("control", "unsure") else None,
        at=str(row.get("at") or row.get("ts") or ""),
    )
    sources = (str(row.get("source_a") or IMPORTED), str(row.get("source_b") or IMPORTED))
    yield Judged(prompt_of(row, options), *answers(row, options), (vote,), sources)


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """A row for each vote."""
    prompt = packed(item.prompt)
    for vote in item.votes:
        yield {
            "pair_id": digest([prompt, item.a, item.b]),
            "prompt": prompt,
            "response_a": cell_of_answer(item.a),
            "response_b": cell_of_answer(item.b),
            "rater": vote.annotator,
            "choice": vote.choice,
            "shown": vote.shown,
            "strength": vote.strength,
            "note": vote.note,
            "sample": vote.sample,
            "at": vote.at,
            "source_a": item.sources[0],
            "source_b": item.sources[1],
        }
