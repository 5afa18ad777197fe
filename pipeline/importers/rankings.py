"""Several answers to a prompt and their order: `responses` and `ranking`. Every two of them are a pair.

`ranking` names the places of the answers, the best first, from 0 (`[2, 0, 1]`); answers that are as good as each other
share a list (`[[2, 0], 1]`) and tie. Answers that it leaves out were not ranked. `annotator` and `at` may be there.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import BadRow, Ballot, Judged, Options, Row, named, person, prompt_of, share, shown, turns

CARRIES = frozenset({"ties", "votes", "annotators"})


def recognise(rows: Sequence[Row], options: Options) -> float:
    """Both names together."""
    return share(rows, "responses", "ranking")


def read(row: Row, options: Options) -> Iterator[Judged]:
    """Every two ranked answers that differ."""
    answers, order = row.get("responses"), row.get("ranking")
    if not isinstance(answers, list | tuple) or not all(isinstance(each, str) for each in answers):
        raise BadRow(f"responses: {shown(answers)} found; needs a list of texts")
    level = _levels(order, len(answers))
    prompt = prompt_of(row, options)
    who = person(row.get(named(row, "annotator", options, "annotator")))
    for one, other in itertools.combinations(sorted(level), 2):
        if answers[one] == answers[other]:
            continue
        choice = "a" if level[one] < level[other] else "b" if level[other] < level[one] else "tie"
        vote = Ballot(choice, annotator=who, at=str(row.get("at") or ""))  # type: ignore[arg-type]
        yield Judged(prompt, answers[one], answers[other], (vote,))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """A row for each vote."""
    orders: dict[str, list[list[int]]] = {"a": [[0], [1]], "b": [[1], [0]], "tie": [[0, 1]]}
    for vote in item.votes:
        yield {
            "prompt": turns(item.prompt),
            "responses": [item.a, item.b],
            "ranking": orders[vote.choice],
            "annotator": vote.annotator,
            "at": vote.at,
        }


def _levels(order: Any, count: int) -> dict[int, int]:
    """Place of an answer -> its rank, 0 the best."""
    if not isinstance(order, list | tuple) or not order:
        raise BadRow(f"ranking: {shown(order)} found; needs a list of places, the best first")
    levels: dict[int, int] = {}
    for rank, group in enumerate(order):
        for place in group if isinstance(group, list | tuple) else [group]:
            if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < count or place in levels:
                raise BadRow(f"ranking: {shown(order)} found; needs each place from 0 to {count - 1} at most once")
            levels[place] = rank
    return levels
