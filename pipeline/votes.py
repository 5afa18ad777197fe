"""People's votes on their way in and out: a folder of records from any files, and a file of any format from records.

`prefloop import` leaves pairs.jsonl, votes.jsonl, verdicts.jsonl, prompts.jsonl, thumbs.jsonl (if there are any),
quarantine.jsonl (every bad row with its reason) and summary.json. What is left out: what a row means
(`pipeline.importers`) and what votes amount to (`pipeline.crowd`).
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import crowd, store
from pipeline.errors import DataError
from pipeline.importers import files
from pipeline.importers.base import Aggregate, BadRow, Ballot, Format, Judged, Source, Thumbed
from pipeline.importers.collect import ANONYMOUS, Collected, Judgement, collect, format_of

VERSION = 5
"""Raised when a change of the importers or of this file changes what comes out."""


def read(source: Source) -> Collected:
    """All that the files say.

    Raises:
        DataError: a file cannot be read, too many rows are bad, or nothing is left.
    """
    return collect(source.files, source.format, source, source.max_bad)


def write(found: Collected, folder: Path, rule: Aggregate) -> crowd.People:
    """All that was imported, as a folder of records. The same votes are the same bytes."""
    store.make_dirs(folder)
    store.write_bytes(folder / "pairs.jsonl", found.lines())
    store.write_bytes(folder / "prompts.jsonl", (line + b"\n" for line in found.prompts.values()))
    store.write_jsonl(folder / "votes.jsonl", found.votes())
    store.write_jsonl(folder / "verdicts.jsonl", crowd.verdicts(found.votes(), rule))
    store.write_jsonl(folder / "quarantine.jsonl", found.quarantine)
    if found.thumbs:
        store.write_jsonl(folder / "thumbs.jsonl", found.thumbs)
    else:
        store.remove(folder / "thumbs.jsonl")  # of an earlier import
    people = crowd.people(found.votes(), found.prompt_of())
    told = {**found.counts().model_dump(mode="json"), "aggregate": rule, "people": people.model_dump(mode="json")}
    store.write_json(folder / "summary.json", told)
    return people


# ---- the other way


class Written(NamedTuple):
    """What a file of another format holds, and what it does not."""

    rows: int
    left_out: dict[str, int]
    """Reason -> pairs or thumbs that it has no place for."""
    lost: list[str]
    """What all of its rows are without."""


LOSSES = {
    "votes": "the votes of each pair are one, what they say together",
    "annotators": "who voted",
    "sources": "who wrote the answers",
    "details": "which side was shown, strength, notes, times, and which pairs were drawn at random",
}
"""What is missing where a format cannot carry it."""


def convert(found: Collected, name: str, path: Path, rule: Aggregate = "dawid_skene") -> Written:
    """Write all that was collected in the format `name`.

    Raises:
        DataError: nothing of it can be written in that format.
    """
    form = format_of(name)
    left_out: Counter[str] = Counter()
    rows = (row for item in _items(found, form, rule, left_out) for row in _rows(item, form, left_out))
    first = next(rows, None)
    if first is None:
        reasons = ", ".join(f"{reason}: {times}" for reason, times in left_out.items())
        raise DataError(f"{path}: nothing can be written as {name} ({reasons or 'nothing was imported'})")
    store.make_dirs(path.parent)
    written = files.write(path, itertools.chain([first], rows))
    lost = [] if "thumbs" in form.CARRIES else [what for part, what in LOSSES.items() if part not in form.CARRIES]
    return Written(rows=written, left_out=dict(left_out), lost=lost)


def _rows(item: Judged | Thumbed, form: Format, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    try:
        yield from form.write(item)
    except BadRow as error:
        left_out[str(error)] += 1


def _items(found: Collected, form: Format, rule: Aggregate, left_out: Counter[str]) -> Iterator[Judged | Thumbed]:
    if "thumbs" in form.CARRIES:
        left_out.update({"pairs": count} if (count := found.counts().pairs) else {})
        yield from (Thumbed(each.prompt.messages, each.response.text, each.good, each.votes) for each in found.thumbs)
        return
    left_out.update({"thumbs": len(found.thumbs)} if found.thumbs else {})
    if "votes" in form.CARRIES:
        yield from (_judged(each, _ballots(each, names="annotators" in form.CARRIES)) for each in found.judgements())
        return
    for each, verdict in zip(found.judgements(), crowd.verdicts(found.votes(), rule), strict=True):
        assert verdict.p_a is not None  # people's votes always come to something
        choice = crowd.says(verdict.p_a)
        if choice == "tie" and "ties" not in form.CARRIES:
            left_out["ties"] += 1
        else:
            yield _judged(each, (Ballot(choice),))


def _judged(each: Judgement, votes: tuple[Ballot, ...]) -> Judged:
    pair = each.pair
    return Judged(pair.prompt.messages, pair.a.text, pair.b.text, votes, (pair.a.source, pair.b.source))


def _ballots(each: Judgement, *, names: bool) -> tuple[Ballot, ...]:
    return tuple(
        Ballot(
            vote.choice,
            annotator=vote.annotator if names and not vote.annotator.startswith(ANONYMOUS) else None,
            shown=vote.shown,
            strength=vote.strength,
            note=vote.note,
            sample=vote.sample,
            at=vote.at,
        )
        for vote in each.votes
    )
