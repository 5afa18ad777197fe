"""Argilla: its nested JSON export, and the flat rows of its data sets (`preference.responses`, `.users`, `.status`).

Drafts and discarded answers are no votes. The nested export does not say which they are, so it is refused unless
`assume_submitted` says that there are none. Suggestions are a model's and never count. A value is a label (`a`, `b`,
`tie`), or a ranking of the two answers' names: the best first, or each with its `rank` as in Argilla 1, where equal
ranks tie. Argilla 1's lists of `value`, `user_id` and `status` are read as well.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
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
    packed_answer,
    part,
    person,
    prompt_of,
    shown,
    turns,
)

CARRIES = frozenset({"ties", "votes", "annotators"})

_END = ".responses"


def recognise(rows: Sequence[Row], options: Options) -> float:
    """`fields` and `responses` together, or columns of responses with their status."""
    nested = part(rows, lambda row: isinstance(row.get("fields"), dict) and "responses" in row)
    flat = part(rows, lambda row: any(f"{name}.status" in row for name in _flat(row)) or _older(row) is not None)
    return max(nested, flat)


def read(row: Row, options: Options) -> Iterator[Judged]:
    """The votes on one record."""
    if isinstance(row.get("fields"), dict):
        fields: Row = row["fields"]
        said = list(_nested(row, options))
    else:
        fields = row
        said = list(_columns(row, options))
    names = {side: column(fields, side, options) or side for side in ("a", "b")}
    votes, skipped = [], []
    for value, who, status in said:
        if status != "submitted":
            skipped.append(str(status))
        elif (choice := _choice(value, names, options)) is None:
            skipped.append("no vote")
        else:
            votes.append(Ballot(choice, annotator=who))
    if not votes:
        raise Skip(f"no submitted answer{f' ({skipped[0]})' if skipped else ''}")
    yield Judged(prompt_of(fields, options), *answers(fields, options), tuple(votes), skipped=tuple(skipped))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """Flat, as its data sets have it: the only one that says that the answers are submitted."""
    yield {
        "prompt": turns(item.prompt),
        "response_a": packed_answer(item.a),
        "response_b": packed_answer(item.b),
        "preference.responses": [vote.choice for vote in item.votes],
        "preference.responses.users": [vote.annotator for vote in item.votes],
        "preference.responses.status": ["submitted"] * len(item.votes),
    }


def _nested(row: Row, options: Options) -> Iterator[tuple[Any, str | None, str]]:
    for answer in _answers(_only(row["responses"], row)):
        status = answer.get("status") or ("submitted" if options.assume_submitted else None)
        if status is None:
            raise BadRow("nothing says which answers are submitted; export flat, or set assume_submitted if all are")
        yield answer.get("value"), person(answer.get("user_id")), status


def _columns(row: Row, options: Options) -> Iterator[tuple[Any, str | None, str]]:
    older = _older(row)
    if older is not None:
        yield from _older_answers(row[older])
        return
    name = _only({each: each for each in _flat(row)}, row)
    values, users, statuses = row[name], row.get(f"{name}.users"), row.get(f"{name}.status")
    if values is None and not statuses:
        return  # a record that nobody has annotated has null in all three
    values = values if isinstance(values, list | tuple) else []
    if not isinstance(statuses, list | tuple) or len(statuses) != len(values):
        raise BadRow(f"{name}.status: {shown(statuses)} found; needs as many as there are answers ({len(values)})")
    users = users if isinstance(users, list | tuple) and len(users) == len(values) else [None] * len(values)
    for value, who, status in zip(values, users, statuses, strict=True):
        yield value, person(who), str(status)


def _older_answers(value: Any) -> Iterator[tuple[Any, str | None, str]]:
    if isinstance(value, Mapping):
        lists = [value.get(name) or [] for name in ("value", "user_id", "status")]
        if not all(isinstance(each, list | tuple) for each in lists) or len({len(each) for each in lists}) > 1:
            raise BadRow("value, user_id and status need to be lists of one length")
        yield from ((what, person(who), str(status)) for what, who, status in zip(*lists))  # noqa: B905
        return
    for each in _answers(value):
        yield each.get("value"), person(each.get("user_id")), str(each.get("status"))


def _flat(row: Row) -> list[str]:
    return [name for name in row if isinstance(name, str) and name.endswith(_END)]


def _older(row: Row) -> str | None:
    """The question of Argilla 1: a column of answers with a status each."""
    for name, value in row.items():
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(first, Mapping) and {"value", "status"} <= first.keys():
            return str(name)
    return None


def _only(questions: Any, row: Row) -> Any:
    """The answers to the one question; `preference` where there are more."""
    if not isinstance(questions, Mapping) or not questions:
        raise Skip("no answer")
    for name in ("preference", f"preference{_END}"):
        if name in questions:
            return questions[name]
    if len(questions) > 1:
        raise BadRow(f"several questions ({', '.join(map(str, questions))}); call the one that counts preference")
    return next(iter(questions.values()))


def _answers(found: Any) -> Iterator[Row]:
    if not isinstance(found, list | tuple) or not all(isinstance(each, Mapping) for each in found):
        raise BadRow(f"responses: {shown(found)} found; needs a list of answers")
    yield from found


def _choice(value: Any, names: Mapping[str, str], options: Options) -> Choice | None:
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRow(f"the ranking {shown(value)} is not JSON") from None
    if isinstance(value, list | tuple | Mapping):
        return _best(value, names)
    words = {names["a"]: "a", names["b"]: "b"}
    return words[value] if value in words else choice_of(value, options)  # type: ignore[return-value]


def _best(ranking: Any, names: Mapping[str, str]) -> Choice:
    """Which answer a ranking puts higher; other answers in it do not matter."""
    ranks = {side: [number(rank) for rank, name in _ranked(ranking) if name == names[side]] for side in ("a", "b")}
    if not all(len(found) == 1 and found[0] is not None for found in ranks.values()):
        raise BadRow(f"the ranking {shown(ranking)} needs to hold {names['a']} and {names['b']}, each once")
    difference = ranks["a"][0] - ranks["b"][0]  # type: ignore[operator]
    return "a" if difference < 0 else "b" if difference > 0 else "tie"


def _ranked(ranking: Any) -> list[tuple[Any, Any]]:
    """(rank, name) of each answer, where a lower rank is better."""
    if not isinstance(ranking, Mapping):
        each_has_one = all(isinstance(each, Mapping) for each in ranking)
        return [(each.get("rank"), each.get("value")) for each in ranking] if each_has_one else [*enumerate(ranking)]
    ranks, values = ranking.get("rank"), ranking.get("value")
    if not isinstance(ranks, list | tuple) or not isinstance(values, list | tuple) or len(ranks) != len(values):
        raise BadRow(f"the ranking {shown(ranking)} found; needs rank and value, lists of one length")
    return [*zip(ranks, values, strict=True)]
