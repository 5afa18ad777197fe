"""Label Studio: pairwise comparisons in its full JSON, in JSON-MIN and in CSV.

`selected: left` is the first answer that the labelling page shows. The export does not say which that is: it is the
column that `columns` calls `a`, or `answer1`, `response_a` and the like. A `<Choices>` of a tie may stand beside the
selection; if both are there and disagree, the row is refused. Cancelled annotations, drafts and predictions are no
votes; an annotation without a result is none either.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.importers.base import (
    WORDS,
    BadRow,
    Ballot,
    Choice,
    Judged,
    Options,
    Row,
    Skip,
    answers,
    named,
    packed,
    packed_answer,
    part,
    person,
    prompt_of,
    shown,
)

CARRIES = frozenset({"ties", "votes", "annotators"})

SIDES: dict[str, Choice] = {"left": "a", "right": "b"}


def recognise(rows: Sequence[Row], options: Options) -> float:
    """Tasks with data and annotations, or rows with an annotation's id and a selection."""
    full = part(rows, lambda row: isinstance(row.get("data"), dict) and _annotations(row) is not None)
    minimal = part(rows, lambda row: "annotation_id" in row and any(map(_selections, row.values())))
    return max(full, minimal)


def read(row: Row, options: Options) -> Iterator[Judged]:
    """The votes on one task, or one annotation of the minimal export."""
    if isinstance(row.get("data"), dict):
        fields: Row = row["data"]
        found = list(_full(row))
    else:
        fields = row
        who = row.get(named(row, "annotator", options, "annotator"))
        found = [(_minimal(row), who, str(row.get("updated_at") or row.get("created_at") or ""))]
    votes, skipped = [], []
    for said, who, at in found:
        if isinstance(said, str):
            skipped.append(said)
        elif (choice := _choice(said, options)) is None:
            skipped.append("no selection")
        else:
            votes.append(Ballot(choice, annotator=person(who), at=at))
    if not votes:
        raise Skip(skipped[0] if skipped else "no annotation")
    yield Judged(prompt_of(fields, options), *answers(fields, options), tuple(votes), skipped=tuple(skipped))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """The full export: one task, an annotation for each vote."""
    yield {
        "data": {
            "prompt": packed(item.prompt),
            "answer1": packed_answer(item.a),
            "answer2": packed_answer(item.b),
        },
        "annotations": [
            {"completed_by": vote.annotator, "was_cancelled": False, "created_at": vote.at, "result": _result(vote)}
            for vote in item.votes
        ],
    }


def _result(vote: Ballot) -> list[dict[str, Any]]:
    if vote.choice == "tie":
        return [{"from_name": "tie", "to_name": "pw", "type": "choices", "value": {"choices": ["tie"]}}]
    side = next(side for side, choice in SIDES.items() if choice == vote.choice)
    return [{"from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": side}}]


def _annotations(row: Row) -> Any:
    return row.get("annotations", row.get("completions"))  # the name in exports before 1.0


def _full(row: Row) -> Iterator[tuple[Any, Any, str]]:
    """(what was said, by whom, when) of each annotation; a text in its place says why it does not count."""
    annotations = _annotations(row)
    if not isinstance(annotations, list | tuple) or not all(isinstance(each, Mapping) for each in annotations):
        raise BadRow(f"annotations: {shown(annotations)} found; needs a list")
    for each in annotations:
        who = each.get("completed_by")
        if isinstance(who, Mapping):
            who = who.get("id")  # never the address
        at = str(each.get("updated_at") or each.get("created_at") or "")
        if each.get("was_cancelled"):
            yield "cancelled", who, at
        else:
            result = each.get("result") or ()
            if not isinstance(result, list | tuple):
                raise BadRow(f"result: {shown(result)} found; needs a list")
            yield [_value(part) for part in result], who, at


def _value(result: Any) -> Mapping[str, Any]:
    value = result.get("value") if isinstance(result, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _minimal(row: Row) -> list[Mapping[str, Any]]:
    said: list[Mapping[str, Any]] = []
    for name, value in row.items():
        said += _selections(value)
        if name in ("tie", "choice", "choices") and value:
            said.append({"choices": value if isinstance(value, list | tuple) else [value]})
    return said


def _selections(value: Any) -> list[Mapping[str, Any]]:
    """`[{"selected": "left"}]`, which in a CSV is JSON in its cell."""
    if isinstance(value, str) and value.startswith("[{") and '"selected"' in value:
        try:
            value = json.loads(value)
        except ValueError:
            return []
    if not isinstance(value, list | tuple):
        return []
    return [each for each in value if isinstance(each, Mapping) and "selected" in each]


def _words(value: Any) -> Sequence[Any]:
    """The labels of a `<Choices>`: a list, or the only one by itself."""
    if value is None or isinstance(value, str):
        return [value] if value else []
    if not isinstance(value, list | tuple):
        raise BadRow(f"choices: {shown(value)} found; needs a list of labels")
    return value


def _choice(said: Sequence[Mapping[str, Any]], options: Options) -> Choice | None:
    found: set[Choice] = set()
    for value in said:
        if "selected" in value:
            if not isinstance(value["selected"], str) or value["selected"] not in SIDES:
                raise BadRow(f"selected: {shown(value['selected'])} found; needs left or right")
            found.add(SIDES[value["selected"]])
        for word in _words(value.get("choices")):
            meant = options.choices.get(str(word), WORDS.get(str(word).lower()))
            if meant not in (None, "none"):
                found.add(meant)  # type: ignore[arg-type]
        ranker = value.get("ranker")
        if isinstance(ranker, Mapping) and isinstance(ranker.get("rank"), list) and ranker["rank"]:
            raise BadRow("a ranking of items by their ids; import it as rankings, with the answers in the row")
    if len(found) > 1:
        raise BadRow(f"one annotation says {' and '.join(sorted(found))}; it needs to say one thing")
    return found.pop() if found else None
