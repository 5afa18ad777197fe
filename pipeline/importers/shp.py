"""Stanford Human Preferences: `history`, `human_ref_A`, `human_ref_B`, and `labels`, where 1 is A and 0 is B.

The ratio of the scores is kept as strength. The crowd of a forum is one anonymous vote.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    BadRow,
    Ballot,
    Choice,
    Judged,
    Options,
    Row,
    answer_of,
    cell_of_answer,
    messages_of,
    number,
    packed,
    share,
    shown,
    text,
    voter,
)

CARRIES: frozenset[str] = frozenset()


def recognise(rows: Sequence[Row], options: Options) -> float:
    """Nobody else has these names."""
    return share(rows, "history", "human_ref_A", "human_ref_B", "labels")


def read(row: Row, options: Options) -> Iterator[Judged]:
    """A is the first answer."""
    sides: dict[float, Choice] = {1.0: "a", 0.0: "b"}
    label = number(row.get("labels"))
    if label not in sides:
        raise BadRow(f"labels: {shown(row.get('labels'))} found; needs 1 (A is better) or 0 (B is)")
    vote = Ballot(sides[label], voter(row, options), strength=number(row.get("score_ratio")))
    prompt = messages_of(text(row, "history"), "history")
    a, b = (answer_of(row.get(name), name) for name in ("human_ref_A", "human_ref_B"))
    yield Judged(prompt, a, b, (vote,))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """The columns that decide; ids and scores of the forum are nobody's."""
    (vote,) = item.votes
    yield {
        "history": packed(item.prompt),
        "human_ref_A": cell_of_answer(item.a),
        "human_ref_B": cell_of_answer(item.b),
        "labels": int(vote.choice == "a"),
    }
