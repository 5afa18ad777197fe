"""The votes as a table with one row a vote, which `prefloop import` reads and `prefloop convert` turns into the rest.

Texts are written as they are, and the prompt as JSON messages; so is an answer that a table cannot tell from a missing
one, or that would be read as messages. `sample` says whether a pair was drawn at random
(`control`) or placed by the judge's doubt (`unsure`). What is left out: what the votes amount to.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from pipeline import store
from pipeline.annotate.ballots import Ballots
from pipeline.errors import DataError
from pipeline.importers.base import cell_of_answer
from pipeline.records import Pair, Sample, Vote

COLUMNS = (
    "pair_id", "prompt", "response_a", "response_b", "rater", "choice", "shown", "note", "at", "source_a", "source_b",
    "sample",
)  # fmt: skip


def export(ballots: Ballots, path: Path) -> int:
    """Replace the file by one with every vote that counts. Returns how many there are.

    Raises:
        DataError: nobody has voted.
    """
    rows = [_row(*each) for each in ballots.votes()]
    if not rows:
        raise DataError(f"{ballots.path}: holds no vote yet; open the page and vote first")
    store.make_dirs(path.resolve().parent)
    store.write_bytes(path, _lines([COLUMNS, *rows]))
    return len(rows)


def _row(pair: Pair, vote: Vote, sample: Sample) -> tuple[str, ...]:
    messages = [message.model_dump() for message in pair.prompt.messages]
    return (
        pair.id,
        json.dumps(messages, ensure_ascii=False),
        cell_of_answer(pair.a.text),
        cell_of_answer(pair.b.text),
        vote.annotator,
        vote.choice,
        vote.shown or "",
        vote.note,
        vote.at,
        pair.a.source,
        pair.b.source,
        sample,
    )


def _lines(rows: list[tuple[str, ...]]) -> Iterator[bytes]:
    for row in rows:
        line = io.StringIO()
        # All in quotes: by itself the writer leaves a lone CR bare, at which readers end the row.
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(row)
        yield line.getvalue().encode()
