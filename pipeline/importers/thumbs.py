"""One answer a row, good or bad: TRL's unpaired preference (`prompt`, `completion`, `label`) and product logs.

Thumbs are true, false, up, down, +1, -1 and the emoji; any other value, stars above all, needs `choices`: `5=a` is
good, `1=b` is bad, `3=none` is left out. No value is no vote, and not a bad one. `columns` may name the prompt and the
vote.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    BadRow,
    Options,
    Row,
    Skip,
    Thumbed,
    answer_of,
    assistant,
    named,
    part,
    prompt_of,
    shown,
    turns,
    word,
)

CARRIES = frozenset({"thumbs"})

ANSWERS = ("completion", "response", "answer", "output")
RATINGS = ("label", "rating", "thumb", "thumbs", "feedback", "vote")

WORDS = {
    **dict.fromkeys(("true", "up", "+1", "👍", "thumbs_up", "thumbsup", "good", "like", "positive"), True),
    **dict.fromkeys(("false", "down", "-1", "👎", "thumbs_down", "thumbsdown", "bad", "dislike", "negative"), False),
}


def recognise(rows: Sequence[Row], options: Options) -> float:
    """A prompt, one answer and a rating, and no other answer."""
    return 0.8 * part(rows, lambda row: _is_one(row, options))


def read(row: Row, options: Options) -> Iterator[Thumbed]:
    """One thumb a row."""
    answer, rating = _name(row, ANSWERS), named(row, "vote", options, _name(row, RATINGS) or "") or None
    if answer is None or rating is None:
        raise BadRow(f"no answer with a rating; needs one of {', '.join(ANSWERS)} and one of {', '.join(RATINGS)}")
    good = _good(row[rating], rating, options)
    votes = row.get("votes")
    if votes is not None and (not str(votes).isdigit() or int(votes) < 1):
        raise BadRow(f"votes: {shown(votes)} found; needs a whole number above 0")
    yield Thumbed(prompt_of(row, options), answer_of(row[answer], answer), good, int(votes) if votes else 1)


def write(item: Thumbed) -> Iterator[dict[str, Any]]:
    """As TRL's KTO takes it, with the number of people."""
    yield {
        "prompt": turns(item.prompt),
        "completion": assistant(item.answer),
        "label": item.good,
        "votes": item.votes,
    }


def _is_one(row: Row, options: Options) -> bool:
    alone = not any(name in row for name in ("chosen", "rejected", "response_a", "response_b", "completions"))
    asked = options.columns.get("prompt", "prompt") in row
    rated = options.columns["vote"] in row if "vote" in options.columns else _name(row, RATINGS) is not None
    return alone and asked and rated and _name(row, ANSWERS) is not None


def _name(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _good(value: Any, name: str, options: Options) -> bool:
    said = word(value)
    meant = options.choices.get(said)
    if meant in ("a", "b"):
        return meant == "a"
    if meant is not None or not said:
        raise Skip("no thumb")
    if said.lower() in WORDS:
        return WORDS[said.lower()]
    raise BadRow(f"{name}: {shown(value)} can mean anything; say what with choices ({said}=a is good, {said}=b is bad)")
