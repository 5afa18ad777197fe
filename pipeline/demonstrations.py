"""Demonstrations: conversations and texts that a policy learns to write, out of files.

JSONL, JSON, CSV, TSV and Parquet, `.gz` or not. A row is a conversation or a plain text, by the columns that it has:

    messages                 turns, the last of them the assistant's; `conversations` with from/value as well
    prompt, completion       what is asked and what is answered, as texts or as turns
    text                     a plain text; the recipe may give the column another name

A `system` beside turns is their system message, if they have none. In a table, turns are JSON in the cell. What is left
out: votes and preferences (`pipeline.importers`), and tokens (`algorithms.sft`).
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import DataError
from pipeline.importers.base import unpacked, with_system
from pipeline.importers.files import rows
from pipeline.plugins import Config, Files
from pipeline.records import Message, Preference, Prompt, Record

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
"""What ShareGPT files call the roles."""

SHOWN = 3
"""Bad rows that an error names."""


class DemonstrationsConfig(Config):
    """Files of demonstrations."""

    train: Files
    """What is learned, file by file; a single path is enough. Relative to the current directory."""
    test: Files | None = None
    """What the loss is measured on and nothing is learned from. None: it is not measured."""
    dataset_text_field: str = "text"
    """The column of plain texts."""
    limit: int | None = Field(default=None, ge=1)
    """The first so many rows of all training files together. None: all."""


class Demonstration(Record):
    """A conversation whose last turn is the assistant's, or a plain text."""

    where: str
    """File and row, for messages."""
    messages: tuple[Message, ...] = ()
    text: str | None = None
    finished: bool | None = None
    """False: the last turn was cut, and did not end there."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.text is not None:
            if not self.text.strip():
                raise ValueError("the text is empty")
            return self
        roles = [turn.role for turn in self.messages[-2:]]
        if roles != ["user", "assistant"]:
            raise ValueError(f"it ends with the turns of {' and '.join(roles) or 'nobody'}, not of user and assistant")
        if not all(turn.content.strip() for turn in self.messages[-2:]):
            raise ValueError("the last question or its answer is empty")
        return self

    @property
    def prompt(self) -> Prompt | None:
        """What is answered in the last turn; None of a plain text."""
        return Prompt(id=self.where, messages=self.messages[:-1]) if self.messages else None


def of_files(config: DemonstrationsConfig) -> tuple[list[Demonstration], list[Demonstration]]:
    """What is learned, and what the loss is measured on.

    Raises:
        DataError: as for `read`.
    """
    tested = read(config.test, config.dataset_text_field) if config.test else []
    return read(config.train, config.dataset_text_field, config.limit), tested


def read(files: Sequence[Path], text_field: str, limit: int | None = None) -> list[Demonstration]:
    """The demonstrations of these files, in order.

    Raises:
        DataError: a file cannot be read, has none, or has rows that are none: with the first of them.
    """
    found: list[Demonstration] = []
    bad: list[str] = []
    for each in itertools.islice(_rows(files), limit):
        where, value, problem = each
        try:
            if value is None:
                raise ValueError(problem)
            found.append(Demonstration(where=where, **_fields(value, text_field)))
        except ValidationError as error:
            bad.append(f"{where}: {error.errors()[0]['msg'].removeprefix('Value error, ')}")
        except ValueError as error:
            bad.append(f"{where}: {error}")
    if bad:
        more = f" (and {len(bad) - SHOWN} more)" if len(bad) > SHOWN else ""
        raise DataError(f"{'; '.join(bad[:SHOWN])}{more}; mend or remove these rows")
    if not found:
        raise DataError(f"{', '.join(map(str, files))}: there are no rows")
    return found


def _rows(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    for path in files:
        for row in rows(path):
            yield f"{path}:{row.place}", row.value, row.problem


def _fields(row: dict[str, Any], text_field: str) -> dict[str, Any]:
    turns = row.get("messages") or row.get("conversations")
    if turns:
        return {"messages": with_system(row, _turns(turns))}
    if row.get("prompt") and row.get("completion"):
        asked, answered = _said(row["prompt"], "user"), _said(row["completion"], "assistant")
        return {"messages": with_system(row, (*asked, *answered))}
    if isinstance(row.get(text_field), str):
        return {"text": row[text_field]}
    both = ("prompt", "completion")
    there = both if all(name in row for name in both) else ("messages", "conversations", text_field)
    if empty := [f"{name} is empty" for name in there if name in row and not row[name]]:
        raise ValueError(" and ".join(empty))
    raise ValueError(
        f"the columns are {', '.join(row) or 'none'}; needs messages, prompt and completion, or {text_field} "
        "(dataset_text_field)"
    )


def _said(value: Any, role: str) -> tuple[Message, ...]:
    value = unpacked(value)
    return (Message(role=role, content=value),) if isinstance(value, str) else _turns(value)


def _turns(value: Any) -> tuple[Message, ...]:
    value = unpacked(value)
    if isinstance(value, str):
        raise ValueError("messages are text here and no list of turns; write that as JSON, or save as JSONL or Parquet")
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError("messages need to be a list of turns, each with role and content")
    return tuple(_turn(turn) for turn in value)


def _turn(turn: dict[str, Any]) -> Message:
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"a turn has {', '.join(turn)}; needs role and content, both text")
    return Message(role=ROLES.get(role, role), content=content)


def of(preferences: Sequence[Preference]) -> list[Demonstration]:
    """The chosen answers, sorted by pair id."""
    return [
        Demonstration(
            where=each.pair_id,
            messages=(*each.prompt.messages, Message(role="assistant", content=each.chosen.text)),
            finished=each.chosen.finished,
        )
        for each in sorted(preferences, key=lambda each: each.pair_id)
    ]
