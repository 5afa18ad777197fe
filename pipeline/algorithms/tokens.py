"""The token ids that DPO and KTO learn from: a conversation as the policy is asked it, and answers as it writes them.

TRL renders the answered conversation by the chat template instead. The templates of models that reason write it
otherwise than they ask (Qwen3 puts an empty `<think>` block before the answer, DeepSeek-R1 drops the one that it asks
with), so a policy would learn what it never wrote; and answers that were cut at the token limit would get an end. So
its trainers are given ids, as those of the other algorithms are. What is left out: padding, and the losses.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.errors import TrainingError
from pipeline.models import answer_ids, chat_ids
from pipeline.records import Message


class Sides(NamedTuple):
    """A prompt and an answer to it, in tokens."""

    prompt: list[int]
    answer: list[int]


def sides(tokenizer: Any, turns: Sequence[Message], text: str, finished: bool | None, max_length: int) -> Sides | None:
    """Tokens of a conversation and an answer, the answer cut to what `max_length` leaves. None: it leaves nothing."""
    prompt = chat_ids(tokenizer, turns)
    answer = answer_ids(tokenizer, text, finished=finished)[: max(0, max_length - len(prompt))]
    return Sides(prompt, answer) if answer else None


def paired_rows(rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """The rows of `views.paired` as `prompt_ids`, `chosen_ids`, `rejected_ids` and `confidence`.

    A row whose prompt leaves no room for an answer is left out.

    Raises:
        TrainingError: that is so of all.
    """
    found = []
    for row in rows:
        chosen, rejected = (_side(row, name, tokenizer, max_length) for name in ("chosen", "rejected"))
        if chosen and rejected:
            ids = {"prompt_ids": chosen.prompt, "chosen_ids": chosen.answer, "rejected_ids": rejected.answer}
            found.append({**ids, "confidence": row["confidence"]})
    _check_room(found, len(rows), max_length)
    return found


def single_rows(rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int, batch: int) -> list[dict[str, Any]]:
    """The rows of `views.unpaired` as `prompt_ids`, `completion_ids`, `KL_completion_ids` and `label`.

    A row whose prompt leaves no room for an answer is left out. The mismatched answer of a row is that of the row
    before it in its batch, of the first that of the last (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1).

    Args:
        batch: rows a forward pass.

    Raises:
        TrainingError: no prompt leaves room.
    """
    encoded = ((_side(row, "completion", tokenizer, max_length), row["label"]) for row in rows)
    kept = [(found, label) for found, label in encoded if found]
    _check_room(kept, len(rows), max_length)
    groups = [kept[start : start + batch] for start in range(0, len(kept), batch)]
    return [
        {
            "prompt_ids": own.prompt,
            "completion_ids": own.answer,
            "KL_completion_ids": group[place - 1][0].answer,
            "label": label,
        }
        for group in groups
        for place, (own, label) in enumerate(group)
    ]


def _side(row: dict[str, Any], name: str, tokenizer: Any, max_length: int) -> Sides | None:
    turns = [Message(**turn) for turn in row["prompt"]]
    return sides(tokenizer, turns, row[name][0]["content"], f"{name}_ids" not in row["cut"], max_length)


def _check_room(kept: Sequence[Any], rows: int, max_length: int) -> None:
    if not kept:
        raise TrainingError(
            f"of all {rows} examples the prompt alone has max_length ({max_length}) tokens or more; raise max_length"
        )


def given_ids(trainer: Any) -> Any:
    """A trainer of TRL whose rows are token ids already."""

    class Given(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return Given
