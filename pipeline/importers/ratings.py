"""Several answers to an instruction, each with ratings, as in UltraFeedback: every two of them are a pair.

The mean of the fine-grained ratings decides, not `overall_score`, which in the published set is wrong for some rows.
A rating is a text there and may be "N/A", which is no rating. Equal means are a tie; the gap is kept as strength.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    IMPORTED,
    BadRow,
    Ballot,
    Judged,
    Options,
    Row,
    Skip,
    number,
    packed,
    part,
    prompt_of,
    shown,
    text,
)

CARRIES = frozenset({"ties", "sources"})


def recognise(rows: Sequence[Row], options: Options) -> float:
    """A list of completions that have ratings."""
    return part(rows, lambda row: _rated(row.get("completions")))


def read(row: Row, options: Options) -> Iterator[Judged]:
    """Every two rated answers, in the order of the row."""
    completions = row.get("completions")
    if not isinstance(completions, list | tuple) or not all(isinstance(each, dict) for each in completions):
        raise BadRow(f"completions: {shown(completions)} found; needs a list of answers")
    prompt = prompt_of(row, options)
    scored = [(each, score) for each in completions if (score := _score(each)) is not None]
    if len(scored) < 2:
        raise Skip("fewer than two rated answers")
    for (one, high), (other, low) in itertools.combinations(scored, 2):
        a, b = text(one, "response"), text(other, "response")
        if a == b:
            continue  # two models said the same: nothing to prefer, and no fault of the row
        choice = "a" if high > low else "b" if low > high else "tie"
        vote = Ballot(choice, strength=abs(high - low))  # type: ignore[arg-type]
        yield Judged(prompt, a, b, (vote,), sources=(_model(one), _model(other)))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """Two completions; the winner's rating is higher by the vote's strength, or by 1."""
    (vote,) = item.votes
    gap = 0.0 if vote.choice == "tie" else 1.0 if vote.strength is None else vote.strength
    ratings = (gap if vote.choice == "a" else 0.0, gap if vote.choice == "b" else 0.0)
    yield {
        "instruction": packed(item.prompt),
        "completions": [
            {"model": source, "response": answer, "fine-grained_score": rating}
            for source, answer, rating in zip(item.sources, (item.a, item.b), ratings, strict=True)
        ],
    }


def _rated(completions: Any) -> bool:
    names = ("annotations", "fine-grained_score", "overall_score", "rating", "score")
    return isinstance(completions, list | tuple) and any(
        isinstance(each, dict) and "response" in each and any(name in each for name in names) for each in completions
    )


def _score(completion: Row) -> float | None:
    """The mean of the fine-grained ratings, else a single score."""
    annotations = completion.get("annotations")
    parts = annotations.values() if isinstance(annotations, dict) else ()
    fine = [found for part in parts if isinstance(part, dict) and (found := number(part.get("Rating"))) is not None]
    if fine:
        return math.fsum(fine) / len(fine)
    for name in ("fine-grained_score", "rating", "score", "overall_score"):
        if (found := number(completion.get(name))) is not None:
            return found
    return None


def _model(completion: Row) -> str:
    return str(completion.get("model") or IMPORTED)
