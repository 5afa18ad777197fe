"""What a format of people's votes is, and what all of them share: reading prompts, answers and choices out of a row.

A format is one file of this folder; its name is what the user types (`--format argilla`). It is three functions and a
set, found by being there and tested by `tests/pipeline/importers/test_contract.py`:

    CARRIES      what it can say beside who won: "ties", "votes" (several on a pair), "annotators", "sources" (who wrote
                 the answers), "details" (side, strength, note, sample, time); "thumbs" for answers that are rated alone
    recognise    (first rows, options) -> how sure it is that they are its own, from 0 to 1
    read         (one row, options) -> what the row says; raises BadRow or Skip with the reason
    write        (one judged pair) -> the row that says the same

A row is a mapping, whatever file it came from (`pipeline.importers.files`). Texts are taken as they are: nothing is
stripped, normalised or unescaped. What is left out: putting rows together (`pipeline.importers.collect`), and what
votes are worth (`pipeline.crowd`).
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field, field_validator

from pipeline.plugins import Config, Files
from pipeline.records import Message, Sample

Row = Mapping[str, Any]
Choice = Literal["a", "b", "tie"]
Named = Literal["prompt", "a", "b", "vote", "annotator", "votes"]
Aggregate = Literal["dawid_skene", "majority"]

IMPORTED = "imported"
"""The source of an answer of which the file does not say who wrote it. Never `chosen`: a name must not tell sides."""

NOBODY = "anonymous"
"""Whom votes of nobody in particular are ascribed to: the crowd as one annotator."""

NO_ANSWER = "nan"
"""What pandas can write where it has no text. An answer that is indeed this word is written as a message."""

WORDS: dict[str, Choice] = {
    **dict.fromkeys(("a", "left", "model_a", "response_a", "answer_a", "response_1", "answer1", "first"), "a"),
    **dict.fromkeys(("b", "right", "model_b", "response_b", "answer_b", "response_2", "answer2", "second"), "b"),
    **dict.fromkeys(("tie", "equal", "same", "draw", "both", "neither", "tie (bothbad)", "both_bad"), "tie"),
}
"""Words that leave no doubt, in lower case. Numbers do: 1 is `a` of 1 and 2, and in SHP's 0 and 1 as well, but
nothing says so. They need `choices`."""

ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip

COLUMNS: dict[Named, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction", "question", "query", "messages"),
    "a": ("response_a", "answer_a", "response_1", "answer_1", "response1", "answer1", "completion_a", "output_a", "a"),
    "b": ("response_b", "answer_b", "response_2", "answer_2", "response2", "answer2", "completion_b", "output_b", "b"),
    "vote": ("choice", "vote", "preference", "preferred", "winner", "label"),
    "annotator": ("annotator", "rater", "annotator_id", "rater_id", "worker", "worker_id", "user"),
}
"""What columns are called, the likelier first; `columns` of the options comes before all of them."""


_MAY_BE_TURNS = re.compile(r"\s*(\[\s*)?\{")

_IS_FORMAT = re.compile(r"^def recognise\(", re.MULTILINE)


class BadRow(ValueError):
    """A row that cannot be used. It goes to the quarantine; the message says what was found and what to do."""


class Skip(Exception):
    """A row that says nothing yet, and rightly so: a draft, a task that nobody has voted on."""


class Options(Config):
    """How rows are to be understood where they do not say it themselves."""

    choices: dict[str, Literal["a", "b", "tie", "none"]] = Field(default_factory=dict)
    """A value of the votes -> what it means; `none` is no vote. Words such as `left`, `A` or `tie` are known. Numbers
    are not: 1 is the first answer in one file and the second in another."""
    columns: dict[Named, str] = Field(default_factory=dict)
    """prompt, a, b, vote or annotator -> the name it has in the file. `votes: alice+bob` names several columns of
    votes, one of each annotator. A row without a column that is named here is a bad one."""
    prompt_split: str | None = None
    """Regular expression at whose last match, within what both texts share, the prompt ends. For files that have whole
    texts and no prompt."""
    assume_submitted: bool = False
    """Argilla's nested export does not say which answers are drafts or discarded. True: there are none."""

    @field_validator("prompt_split")
    @classmethod
    def _is_an_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} found; needs to be a regular expression ({error})") from error
        return value


class Source(Options):
    """Files of people's votes, and how they are read."""

    files: Files
    """In any format that `prefloop import` knows; a single path is enough. Relative to the current directory."""
    format: str = "auto"
    """The format's name, a file of `pipeline/importers`. auto: seen from the first rows of each file."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may be unusable. More stop the run, with an example of each reason."""
    aggregate: Aggregate = "dawid_skene"
    """What several votes on a pair amount to; `pipeline/crowd.py` has both rules."""

    @field_validator("format")
    @classmethod
    def _is_there(cls, value: str) -> str:
        if value != "auto" and value not in format_names():
            raise ValueError(no_format(value))
        return value


class Ballot(NamedTuple):
    """One vote, in the terms of the file: `a` is its first answer."""

    choice: Choice
    annotator: str | None = None
    """None: the file does not say who."""
    shown: Literal["ab", "ba"] | None = None
    strength: float | None = None
    note: str = ""
    sample: Sample | None = None
    """How the pair came to be asked about, where our own page asked."""
    at: str = ""


class Judged(NamedTuple):
    """Two answers as a file has them, and the votes on them."""

    prompt: tuple[Message, ...]
    a: str
    b: str
    votes: tuple[Ballot, ...]
    sources: tuple[str, str] = (IMPORTED, IMPORTED)
    skipped: tuple[str, ...] = ()
    """The reason of each vote of the row that does not count."""


class Thumbed(NamedTuple):
    """One answer that somebody found good or bad."""

    prompt: tuple[Message, ...]
    answer: str
    good: bool
    votes: int = 1


class Format(Protocol):
    """The functions of a format's module."""

    CARRIES: frozenset[str]

    def recognise(self, rows: Sequence[Row], options: Options) -> float:
        """How sure it is that these first rows of a file are its own, from 0 to 1."""
        ...

    def read(self, row: Row, options: Options) -> Iterator[Judged | Thumbed]:
        """What one row says.

        Raises:
            BadRow: it cannot be used.
            Skip: it says nothing.
        """
        ...

    def write(self, item: Any) -> Iterator[dict[str, Any]]:
        """The rows that say the same. It is given no more than it `CARRIES`: one vote, for one that has no "votes".

        Raises:
            BadRow: this item would be read back as something else.
        """
        ...


def format_names() -> list[str]:
    """The formats there are: modules of this folder that recognise something. None of them is imported for it."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if _IS_FORMAT.search(file.read_text(encoding="utf-8")))


def no_format(name: str) -> str:
    """That there is no format of that name, and which there are."""
    return f"no format is called {name!r}; there are: {', '.join(format_names())}"


# ---- prompts and answers


def messages_of(value: Any, what: str = "prompt") -> tuple[Message, ...]:
    """A conversation out of a text (one user turn), or out of turns under any of their usual names.

    Raises:
        BadRow: it is neither.
    """
    value = _conversation(value)
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    if isinstance(value, dict) and isinstance(value.get("messages"), list | tuple):
        value = value["messages"]
    if not isinstance(value, list | tuple) or not value:
        raise BadRow(f"{what}: {shown(value)} found; needs a text or a list of messages")
    return tuple(_message(turn, what) for turn in value)


def answer_of(value: Any, what: str) -> str:
    """One answer: its text, or a message or a list of one message that holds it; in a table, the list as JSON.

    Raises:
        BadRow: it is missing or none, or has several turns.
    """
    if value is None or (isinstance(value, str | float) and str(value) == NO_ANSWER):
        said = "" if value is None else NO_ANSWER
        mend = f"fill it in or leave the row out, or write {json.dumps(assistant(said))} if that is the answer"
        raise BadRow(f"{what} is {said or 'empty'}; {mend}")
    value = unpacked(value)
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise BadRow(f"{what}: {shown(value)} found; needs a text or a message")
    turns = messages_of(value, what)
    if len(turns) > 1 or turns[0].role != "assistant":
        raise BadRow(f"{what}: {len(turns)} messages, the first by {turns[0].role}; needs one of the assistant")
    return turns[0].content


def last_turn(turns: tuple[Message, ...], what: str) -> tuple[tuple[Message, ...], str]:
    """A whole conversation as its prompt and its last answer.

    Raises:
        BadRow: it does not end with the assistant's turn.
    """
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise BadRow(f"{what}: the last of {len(turns)} messages needs to be the assistant's, after a user's")
    return turns[:-1], turns[-1].content


def same_prompt(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt of two whole conversations.

    Raises:
        BadRow: they part before the last answer, so that the answers are not to one prompt.
    """
    if chosen != rejected:
        raise BadRow("the two sides part before the last answer: they do not answer one prompt")
    return chosen


def prompt_of(row: Row, options: Options) -> tuple[Message, ...]:
    """The conversation in a row's prompt column, after its `system` message if it has one.

    Raises:
        BadRow: there is none, or it is no conversation.
    """
    name = _present(row, "prompt", options)
    value = row[name]
    if value is None:
        raise BadRow(f"prompt: {name} is empty; fill it in")
    if name.lower() == "instruction" and isinstance(_conversation(value), str):
        value = instruction_of(row, name)
    return with_system(row, messages_of(value))


def instruction_of(row: Row, name: str = "instruction") -> str:
    """What a row of Alpaca's asks: the instruction, a line break, and its `input` if it has one.

    Raises:
        BadRow: one of them is no text.
    """
    asked = text(row, name)
    beside = next((each for each in row if isinstance(each, str) and each.lower() == "input" and row[each]), None)
    return asked if beside is None else f"{asked}\n{text(row, beside)}"


def with_system(row: Row, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt after the row's `system` message, if it has one and the prompt none of its own.

    Raises:
        BadRow: `system` is no text.
    """
    if not row.get("system") or prompt[0].role == "system":
        return prompt
    return (Message(role="system", content=text(row, "system")), *prompt)


def by_choice(item: "Judged") -> tuple[str, str]:
    """The answer that was chosen, and the other one. The item has one vote, and it is no tie."""
    (vote,) = item.votes
    return (item.a, item.b) if vote.choice == "a" else (item.b, item.a)


def packed(prompt: tuple[Message, ...]) -> str:
    """A prompt in one cell: the text of a single user turn, JSON otherwise. `messages_of` reads both back."""
    alone = len(prompt) == 1 and prompt[0].role == "user"
    if alone and isinstance(_conversation(prompt[0].content), str):
        return prompt[0].content
    return json.dumps(turns(prompt), ensure_ascii=False)


def packed_answer(answer: str) -> str:
    """An answer in one cell: its text, JSON where that would be taken for turns or for none. `answer_of` reads both."""
    plain = answer != NO_ANSWER and unpacked(answer) is answer
    return answer if plain else json.dumps(assistant(answer), ensure_ascii=False)


def cell_of_answer(answer: str) -> str:
    """An answer in a cell of CSV, where an empty one may as well be a cell that nobody filled in."""
    return packed_answer(answer) or json.dumps(assistant(answer))


def turns(prompt: tuple[Message, ...]) -> list[dict[str, str]]:
    """Messages as most formats write them."""
    return [{"role": message.role, "content": message.content} for message in prompt]


def assistant(text: str) -> list[dict[str, str]]:
    """One answer as a list of messages."""
    return [{"role": "assistant", "content": text}]


def unpacked(value: Any) -> Any:
    """The turns that a cell of a table holds as JSON. Any other text, JSON or not, is what somebody said, and stays."""
    found = _json(value)
    return found if _are_turns(found) else value


def _conversation(value: Any) -> Any:
    # Only of a prompt: an answer can well be an object with messages, because the prompt asked for one.
    found = _json(value)
    found = found["messages"] if isinstance(found, dict) and set(found) == {"messages"} else found
    return found if _are_turns(found) else value


def _json(value: Any) -> Any:
    if not isinstance(value, str) or not _MAY_BE_TURNS.match(value):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _are_turns(found: Any) -> bool:
    """Whether these are turns, whatever else each of them has; objects with a `role` are, if one is a known speaker's:
    lists of users or of flights have a role or a from as well."""
    names = ({"role", "content"}, {"from", "value"})
    return (
        isinstance(found, list)
        and all(isinstance(turn, dict) and any(turn.keys() >= both for both in names) for turn in found)
        and any(str(turn.get("role", turn.get("from"))) in ROLES for turn in found)
    )


def _message(turn: Any, what: str) -> Message:
    if isinstance(turn, Message):
        return turn
    if not isinstance(turn, dict):
        raise BadRow(f"{what}: {shown(turn)} found among the messages; needs a role and a content")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list):  # parts, as in OpenAI's API
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise BadRow(f"{what}: a message has parts that are not text; only text can be trained on")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRow(f"{what}: a message's content is {shown(content)}; needs a text")
    if str(role) not in ROLES:
        raise BadRow(f"{what}: a message is by {shown(role)}; there are user, assistant and system")
    return Message(role=ROLES[str(role)], content=content)


# ---- columns and choices


def column(row: Row, what: Named, options: Options) -> str | None:
    """The name of the column that holds the prompt, an answer, the vote or the annotator; None: there is none.

    Raises:
        BadRow: `columns` of the options names one that is not there.
    """
    if what in options.columns:
        return present(row, options.columns[what])
    known = {name.lower(): name for name in row if isinstance(name, str)}
    return next((known[name] for name in COLUMNS[what] if name in known), None)


def has(row: Row, what: Named, options: Options) -> bool:
    """Whether there is such a column, for `recognise`."""
    return options.columns[what] in row if what in options.columns else column(row, what, options) is not None


def named(row: Row, what: Named, options: Options, usual: str) -> str:
    """The name of a column that the format itself always calls `usual`, unless the options name another.

    Raises:
        BadRow: they do, and it is not there.
    """
    if what not in options.columns:
        return usual
    return present(row, options.columns[what])


def present(row: Row, name: str) -> str:
    """The name of a column that somebody named.

    Raises:
        BadRow: it is not there.
    """
    if name not in row:
        raise BadRow(f"no column {name!r}: the row has {', '.join(map(str, row))}; mend its name in columns")
    return name


def vote_of(row: Row, options: Options) -> Choice | None:
    """What the column of votes says; None: nobody voted, whether the cell is blank or null.

    Raises:
        BadRow: there is no such column, or nothing says what its value means.
    """
    return choice_of(row[_present(row, "vote", options)], options)


def _present(row: Row, what: Named, options: Options) -> str:
    name = column(row, what, options)
    if name is None:
        raise BadRow(f"no {what}: the row has {', '.join(map(str, row))}; say which it is with columns ({what}=NAME)")
    return name


def answers(row: Row, options: Options) -> tuple[str, str]:
    """The two answers of a table's row.

    Raises:
        BadRow: one is missing, or none.
    """
    a, b = _present(row, "a", options), _present(row, "b", options)
    return answer_of(row[a], a), answer_of(row[b], b)


def person(value: Any) -> str | None:
    """Who voted, by the file's name or number of them; None: it does not say, whether it is blank or null."""
    # `Ana` and `ana` can be two people.
    return word(value) or None


def word(value: Any) -> str:
    """A name, a number or a mark out of a cell, without the blanks at its ends, which are slips; "" is an empty cell.

    A column of whole numbers with gaps comes as floats out of Parquet and pandas, and a gap of theirs as NaN.
    """
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        return "" if math.isnan(value) else str(int(value))
    return "" if value is None else str(value).strip()


def voter(row: Row, options: Options) -> str | None:
    """Who voted, in a format that has no column for them, by the one that the options name; None: they name none.

    Raises:
        BadRow: the column is not there.
    """
    return person(row[present(row, options.columns["annotator"])]) if "annotator" in options.columns else None


def text(row: Row, name: str) -> str:
    """A text of a row.

    Raises:
        BadRow: it is missing or something else.
    """
    if not isinstance(row.get(name), str):
        raise BadRow(f"{name}: {shown(row.get(name))} found; needs a text")
    found: str = row[name]
    return found


def choice_of(value: Any, options: Options) -> Choice | None:
    """What a value of a vote means; None: no vote.

    Raises:
        BadRow: nothing says what it means.
    """
    said = word(value)
    if said in options.choices:
        meant = options.choices[said]
        return None if meant == "none" else meant
    if not said:
        return None
    if said.lower() in WORDS:
        return WORDS[said.lower()]
    raise BadRow(f"the vote {shown(value)} can mean anything; say what with choices, such as {said}=a")


def number(value: Any) -> float | None:
    """A finite number out of a cell; None: it is empty or "N/A".

    Raises:
        BadRow: it is something else.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "n/a", "na", "none", "null")):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"{shown(value)} found; needs a number") from None
    return found if math.isfinite(found) else None


def share(rows: Sequence[Row], *names: str) -> float:
    """The share of rows that have all these fields, for `recognise`."""
    return part(rows, lambda row: all(name in row for name in names))


def part(rows: Sequence[Row], is_so: Callable[[Row], bool]) -> float:
    """The share of rows of which this is so, for `recognise`."""
    return sum(map(is_so, rows)) / max(1, len(rows))


def shown(value: Any) -> str:
    """A value, short enough for a sentence."""
    found = repr(value)
    return found if len(found) <= 60 else found[:57] + "..."
