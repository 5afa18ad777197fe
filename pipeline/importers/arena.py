"""Chatbot Arena and MT-bench: two whole conversations with two models, and a `winner`.

`conversation_a`/`conversation_b` are lists of messages, or the same as JSON text; a row of MT-bench is about one `turn`
of them. The table with `winner_model_a`, `winner_model_b`, `winner_tie` and lists in text is read as well. "tie
(bothbad)" is a tie. Where models answered differently before, their last answers are to two prompts: refused.
"""

import json
from collections.abc import Iterator, Sequence
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
    assistant,
    last_turn,
    messages_of,
    named,
    number,
    person,
    share,
    shown,
    turns,
)
from pipeline.records import Message

CARRIES = frozenset({"ties", "votes", "annotators", "sources"})

WINNERS: dict[str, Choice] = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}


def recognise(rows: Sequence[Row], options: Options) -> float:
    """Nobody else has these names."""
    winner = options.columns.get("vote", "winner")
    return max(share(rows, "conversation_a", "conversation_b", winner), share(rows, "response_a", *WINNERS))


def read(row: Row, options: Options) -> Iterator[Judged]:
    """Model a's answer is the first."""
    if "conversation_a" in row:
        one, a = last_turn(_turns(row, "conversation_a"), "conversation_a")
        other, b = last_turn(_turns(row, "conversation_b"), "conversation_b")
        if one != other:
            raise BadRow("the conversations part before the last answer: the answers are not to one prompt")
        winner = row.get(named(row, "vote", options, "winner"))
        if winner in (None, ""):
            raise Skip("no vote")
        choice = _winner(winner)
    else:
        one, a, b = _table(row)
        choice = _flag(row)
    who = person(row.get(named(row, "annotator", options, "judge")))
    vote = Ballot(choice, annotator=who, at=str(row.get("tstamp") or ""))
    yield Judged(one, a, b, (vote,), sources=(str(row.get("model_a") or "a"), str(row.get("model_b") or "b")))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """A row for each vote."""
    for vote in item.votes:
        yield {
            "model_a": item.sources[0],
            "model_b": item.sources[1],
            "winner": "tie" if vote.choice == "tie" else f"model_{vote.choice}",
            "judge": vote.annotator,
            "conversation_a": turns(item.prompt) + assistant(item.a),
            "conversation_b": turns(item.prompt) + assistant(item.b),
            "turn": sum(message.role == "user" for message in item.prompt),
            "tstamp": vote.at,
        }


def _turns(row: Row, name: str) -> tuple[Message, ...]:
    value = row.get(name)
    if isinstance(value, str):
        value = _json(value, name)
    whole = messages_of(value, name)
    turn = number(row.get("turn"))
    # In MT-bench a vote on turn 1 comes with both turns of the conversation.
    places = [place for place, message in enumerate(whole) if message.role == "assistant"]
    return whole[: places[int(turn) - 1] + 1] if turn and 0 < turn <= len(places) else whole


def _table(row: Row) -> tuple[tuple[Message, ...], str, str]:
    texts = {name: _json(row.get(name), name) for name in ("prompt", "response_a", "response_b")}
    asked, a, b = (value if isinstance(value, list) else [value] for value in texts.values())
    if not len(asked) == len(a) == len(b) or not asked or not all(isinstance(t, str) for t in (*asked, *a, *b)):
        raise BadRow("prompt, response_a and response_b need to be lists of texts of one length")
    if a[:-1] != b[:-1]:
        raise BadRow("the conversations part before the last answer: the answers are not to one prompt")
    before = [
        Message(role=role, content=content)
        for user, answer in zip(asked, a, strict=True)
        for role, content in (("user", user), ("assistant", answer))
    ]
    return tuple(before[:-1]), a[-1], b[-1]


def _json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise BadRow(f"{name}: {shown(value)} found; needs a list as JSON ({error})") from None


def _winner(value: Any) -> Choice:
    word = str(value).strip().lower()
    if word.startswith("tie") or word in WORDS:
        return WORDS.get(word, "tie")
    raise BadRow(f"winner: {shown(value)} found; needs model_a, model_b or tie")


def _flag(row: Row) -> Choice:
    set_ = [choice for name, choice in WINNERS.items() if number(row.get(name)) == 1]
    if len(set_) != 1:
        raise BadRow(f"{len(set_)} of {', '.join(WINNERS)} are 1; exactly one needs to be")
    return set_[0]
