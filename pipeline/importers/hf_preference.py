"""Hugging Face preference sets, as TRL reads them: `prompt`, `chosen`, `rejected`; or without the prompt.

Texts or lists of messages. Without a prompt, two conversations part at the last answer, and two texts where the option
`prompt_split` says: nothing in them tells a prompt from the beginning of an answer, and guessing moves words from one
to the other. A `system` column comes before the prompt. `chosen_response` and the scores of binarised UltraFeedback are
known as well; equal scores are a tie.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.importers.base import (
    BadRow,
    Ballot,
    Choice,
    Judged,
    Options,
    Row,
    answer_of,
    assistant,
    by_choice,
    column,
    last_turn,
    messages_of,
    number,
    same_prompt,
    share,
    turns,
    unpacked,
    voter,
    with_system,
)
from pipeline.records import Message

CARRIES: frozenset[str] = frozenset()

SCORES = (("score_chosen", "score_rejected"), ("chosen_avg_rating", "rejected_avg_rating"))


def recognise(rows: Sequence[Row], options: Options) -> float:
    """Chosen and rejected are common words: other formats that have them say more."""
    return 0.6 * max(share(rows, "chosen", "rejected"), share(rows, "chosen_response", "rejected_response"))


def read(row: Row, options: Options) -> Iterator[Judged]:
    """The chosen answer is the first."""
    chosen, rejected = (unpacked(row.get(side, row.get(f"{side}_response"))) for side in ("chosen", "rejected"))
    name = column(row, "prompt", options)
    whole = all(isinstance(side, list | tuple) and len(side) > 1 for side in (chosen, rejected))
    if whole:
        prompt, answers = _conversations(chosen, rejected)
    elif name is not None and (name != "messages" or "prompt" in options.columns) and row[name] is not None:
        prompt = messages_of(row[name])
        answers = answer_of(chosen, "chosen"), answer_of(rejected, "rejected")
    else:
        prompt, answers = _texts(chosen, rejected, options)
    choice, strength = _scored(row)
    yield Judged(with_system(row, prompt), *answers, (Ballot(choice, voter(row, options), strength=strength),))


def write(item: Judged) -> Iterator[dict[str, Any]]:
    """Conversational, with the prompt by itself: what DPO and KTO want."""
    chosen, rejected = by_choice(item)
    yield {"prompt": turns(item.prompt), "chosen": assistant(chosen), "rejected": assistant(rejected)}


def _conversations(chosen: Any, rejected: Any) -> tuple[tuple[Message, ...], tuple[str, str]]:
    one, a = last_turn(messages_of(chosen, "chosen"), "chosen")
    other, b = last_turn(messages_of(rejected, "rejected"), "rejected")
    return same_prompt(one, other), (a, b)


def _texts(chosen: Any, rejected: Any, options: Options) -> tuple[tuple[Message, ...], tuple[str, str]]:
    if options.prompt_split is None:
        raise BadRow("no prompt, and texts do not say where it ends; say so with prompt_split (a regular expression)")
    one, other = answer_of(chosen, "chosen"), answer_of(rejected, "rejected")
    shared = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    ends = [found.end() for found in re.finditer(options.prompt_split, one) if 0 < found.end() <= shared]
    if not ends:
        raise BadRow(f"prompt_split {options.prompt_split!r} is not in what both texts share; mend the expression")
    return messages_of(one[: ends[-1]]), (one[ends[-1] :], other[ends[-1] :])


def _scored(row: Row) -> tuple[Choice, float | None]:
    for names in SCORES:
        scores = [number(row.get(name)) for name in names]
        if scores[0] is not None and scores[1] is not None:
            gap = scores[0] - scores[1]
            if gap < 0:
                raise BadRow(f"{names[0]} is below {names[1]}: the row contradicts itself")
            return ("a", gap) if gap else ("tie", 0.0)
    return "a", None
