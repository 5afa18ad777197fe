"""LLaMA-Factory: Alpaca preference (`instruction`, `input`, `chosen`, `rejected`), ShareGPT preference
(`conversations`), and its KTO sets (messages and a boolean).

The prompt of an Alpaca row is the instruction, a line break and the input; `system` and `history` come before it.
Columns need to have these names: what a `dataset_info.json` says of others is not read.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    BadRow,
    Ballot,
    Judged,
    Options,
    Row,
    Thumbed,
    answer_of,
    by_choice,
    instruction_of,
    last_turn,
    messages_of,
    part,
    share,
    shown,
    voter,
    with_system,
)
from pipeline.records import Message

CARRIES: frozenset[str] = frozenset()

LABELS = ("label", "kto_tag")


def recognise(rows: Sequence[Row], options: Options) -> float:
    """An instruction and both sides are Alpaca's; `conversations` with both sides are ShareGPT's."""
    alpaca, sharegpt = share(rows, "instruction", "chosen", "rejected"), share(rows, "conversations", "chosen")
    kto = part(rows, lambda row: _conversation(row) is not None and _label(row) is not None)
    return 0.9 * max(alpaca, sharegpt, kto)


def read(row: Row, options: Options) -> Iterator[Judged | Thumbed]:
    """The chosen answer is the first."""
    label = _label(row)
    if label is not None:
        prompt, answer = last_turn(messages_of(_conversation(row), "messages"), "messages")
        yield Thumbed(with_system(row, prompt), answer, label)
        return
    a, b = answer_of(row.get("chosen"), "chosen"), answer_of(row.get("rejected"), "rejected")
    turns = messages_of(row["conversations"], "conversations") if "conversations" in row else _alpaca(row)
    yield Judged(with_system(row, turns), a, b, (Ballot("a", voter(row, options)),))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """ShareGPT preference: Alpaca's has no place for a conversation that begins with the assistant."""
    chosen, rejected = by_choice(item)
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    yield {
        "conversations": [{"from": names[message.role], "value": message.content} for message in item.prompt],
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }


def _alpaca(row: Row) -> tuple[Message, ...]:
    before: list[Message] = []
    history = row.get("history") or ()
    if not isinstance(history, list | tuple):
        raise BadRow(f"history: {shown(history)} found; needs a list of what the user and the assistant said")
    for turn in history:
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(each, str) for each in turn):
            raise BadRow(f"history: {shown(turn)} found; needs pairs of what the user and the assistant said")
        before += [Message(role="user", content=turn[0]), Message(role="assistant", content=turn[1])]
    return (*before, Message(role="user", content=instruction_of(row)))


def _conversation(row: Row) -> Any:
    found = row.get("messages", row.get("conversations"))
    return found if isinstance(found, list | tuple) else None


def _label(row: Row) -> bool | None:
    found = next((row[name] for name in LABELS if name in row), None)
    return found if isinstance(found, bool) and "chosen" not in row else None
