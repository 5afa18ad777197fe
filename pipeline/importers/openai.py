"""OpenAI's preference fine-tuning: `input.messages`, `preferred_output`, `non_preferred_output`.

The older spelling `preferred_completion` and the cousin with `messages` and `rejected_response` are read as well.
Tools are refused: what they returned is not in the answers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    BadRow,
    Ballot,
    Judged,
    Options,
    Row,
    answer_of,
    assistant,
    by_choice,
    last_turn,
    messages_of,
    share,
    shown,
    text,
    turns,
    voter,
)

CARRIES: frozenset[str] = frozenset()

SIDES = (("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion"))


def recognise(rows: Sequence[Row], options: Options) -> float:
    """Nobody else has these names."""
    return max(*(share(rows, "input", *sides) for sides in SIDES), share(rows, "messages", "rejected_response"))


def read(row: Row, options: Options) -> Iterator[Judged]:
    """The preferred answer is the first."""
    if "rejected_response" in row:
        prompt, answer = last_turn(messages_of(row.get("messages"), "messages"), "messages")
        yield Judged(prompt, answer, text(row, "rejected_response"), (Ballot("a", voter(row, options)),))
        return
    asked = row.get("input")
    if not isinstance(asked, dict) or "messages" not in asked:
        raise BadRow(f"input: {shown(asked)} found; needs messages")
    if asked.get("tools"):
        raise BadRow("input.tools: tools are not supported; leave the row out")
    sides = next((names for names in SIDES if names[0] in row), SIDES[0])
    a, b = (answer_of(row.get(name), name) for name in sides)
    yield Judged(messages_of(asked["messages"], "input.messages"), a, b, (Ballot("a", voter(row, options)),))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """As the fine-tuning API takes it."""
    chosen, rejected = by_choice(item)
    yield {
        "input": {"messages": turns(item.prompt), "tools": [], "parallel_tool_calls": True},
        "preferred_output": assistant(chosen),
        "non_preferred_output": assistant(rejected),
    }
