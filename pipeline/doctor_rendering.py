"""Proof by rendering: what of a conversation is trained on, shown on one, by the code that trains.

An answer that is trained without its end teaches the model never to stop, and no loss shows it. So a conversation is
rendered with its answer as TRL renders it, and split where `models.chat_ids` says that the answer begins; what comes
after that is trained on. What is left out: the loss, and templates of models behind an API.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.findings import Finding
from pipeline.models import answer_ids, chat_ids
from pipeline.records import Message, Prompt

ANSWER = "This is the answer."
OPEN, CLOSE = "⟦", "⟧"
"""Around what is trained on, where it is shown."""


def rendering_findings(tokenizer: Any, prompt: Prompt, where: str = "model.base") -> list[Finding]:
    """What the chat template does to the conversation of a prompt and an answer to it."""
    before = chat_ids(tokenizer, prompt.messages)
    whole = _whole(tokenizer, prompt.messages)
    problem = _problem(tokenizer, before, whole, answer_ids(tokenizer, ANSWER, finished=True))
    if problem:
        return [Finding(level="error", check="template", where=where, what=problem[0], remedy=problem[1])]
    shown = f"{tokenizer.decode(before)}{OPEN}{tokenizer.decode(whole[len(before) :])}{CLOSE}"
    what = f"only what is in {OPEN}{CLOSE} is trained on, the end of the turn included: {shown}"
    return [Finding(level="info", check="template", where=where, what=what), *_padding(tokenizer, where)]


def _whole(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    turns = [{"role": each.role, "content": each.content} for each in messages]
    turns.append({"role": "assistant", "content": ANSWER})
    return [int(token) for token in tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]]


def _problem(tokenizer: Any, before: list[int], whole: list[int], sampled: list[int]) -> tuple[str, str] | None:
    """What is wrong, and what to do about it."""
    if whole[: len(before)] != before:
        return (
            "the chat template writes the conversation otherwise once it is answered, so nothing says where the "
            "answer begins",
            "mend the template: with add_generation_prompt it has to write how an answered conversation begins",
        )
    trained = whole[len(before) :]
    if tokenizer.eos_token_id not in trained:
        last = tokenizer.decode(trained[-3:])
        return (
            f"an answer ends with {last!r}, and the end token {tokenizer.eos_token!r} is not in it: the model would "
            "never learn to stop",
            "set eos_token in tokenizer_config.json to what ends the template's assistant turn",
        )
    if trained[: len(sampled)] != sampled:
        return (
            f"training sees {tokenizer.decode(trained)!r} where the model writes {tokenizer.decode(sampled)!r}",
            "mend the template: it has to write an answer as it is, and the end token after it",
        )
    return None


def _padding(tokenizer: Any, where: str) -> Iterator[Finding]:
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        what = f"the pad token is the end token {tokenizer.eos_token!r}; ends are not masked, as masks go by length"
        yield Finding(level="info", check="tokenizer", where=where, what=what)
