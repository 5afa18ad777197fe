"""Anthropic's HH: `chosen` and `rejected` are whole dialogues as text, with turns after "\\n\\nHuman:" and
"\\n\\nAssistant:".

The last answer may be empty, as in the real data. A row whose sides part before the last answer has no one prompt and
is refused. Turns of one speaker after another stay as they are.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    BadRow,
    Ballot,
    Judged,
    Options,
    Row,
    by_choice,
    last_turn,
    part,
    same_prompt,
    text,
    voter,
)
from pipeline.records import Message

CARRIES: frozenset[str] = frozenset()

_TURN = re.compile(r"\n\n(Human|Assistant):(?: |$|(?=\n))")
"""The blank after the colon belongs to the marker; an empty last answer has none."""

_SPEAKER = {"Human": "user", "Assistant": "assistant"}


def recognise(rows: Sequence[Row], options: Options) -> float:
    """The marker at the beginning of both texts is nobody else's."""
    return part(rows, lambda row: all(_starts(row.get(side)) for side in ("chosen", "rejected")))


def read(row: Row, options: Options) -> Iterator[Judged]:
    """The chosen answer is the first."""
    one, a = last_turn(_dialogue(text(row, "chosen"), "chosen"), "chosen")
    other, b = last_turn(_dialogue(text(row, "rejected"), "rejected"), "rejected")
    yield Judged(same_prompt(one, other), a, b, (Ballot("a", voter(row, options)),))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """Refuses what would be read back as something else.

    Raises:
        BadRow: a text holds a marker, or there is a system message.
    """
    sides = by_choice(item)
    names = {role: name for name, role in _SPEAKER.items()}
    if any(message.role not in names for message in item.prompt):
        raise BadRow("a system message, which this format has no place for")
    if any(_TURN.search(f"{part}\n") for part in (*(message.content for message in item.prompt), *sides)):
        raise BadRow('a text holds "\\n\\nHuman:" or "\\n\\nAssistant:", which would be read as a turn')
    before = "".join(f"\n\n{names[message.role]}: {message.content}" for message in item.prompt)
    yield {side: f"{before}\n\nAssistant: {answer}" for side, answer in zip(("chosen", "rejected"), sides, strict=True)}


def _starts(value: Any) -> bool:
    return isinstance(value, str) and _TURN.match(value) is not None


def _dialogue(whole: str, side: str) -> tuple[Message, ...]:
    found = list(_TURN.finditer(whole))
    if not found or found[0].start() > 0:
        raise BadRow(f'{side}: does not begin with "\\n\\nHuman:"')
    ends = [turn.start() for turn in found[1:]] + [len(whole)]
    return tuple(
        Message(role=_SPEAKER[turn[1]], content=whole[turn.end() : end]) for turn, end in zip(found, ends, strict=True)
    )
