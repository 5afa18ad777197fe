"""Proof by rendering: what of a conversation is trained on, shown on one, by the code that trains.

Every algorithm learns the conversation as the policy is asked it and the answer as it writes it, its end token
included (`models.chat_ids`, `models.answer_ids`). The chat template is asked how it would write the answered
conversation: if it ends the assistant's turn with another token, the end that is learned is not the one that whoever
serves the model waits for. What is left out: the loss, and templates of models behind an API.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.findings import Finding, Level
from pipeline.models import answer_ids, chat_ids, takes_system
from pipeline.records import Message, Prompt

ANSWER = "This is the answer."
OPEN, CLOSE = "⟦", "⟧"
"""Around what is trained on, where it is shown."""


def rendering_findings(tokenizer: Any, prompt: Prompt, where: str = "model.base") -> list[Finding]:
    """What is trained on of the conversation of a prompt and an answer to it, and what the template says of that."""

    def finding(level: Level, what: str, remedy: str = "") -> Finding:
        return Finding(level=level, check="template", where=where, what=what, remedy=remedy)

    before, answer = chat_ids(tokenizer, prompt.messages), answer_ids(tokenizer, ANSWER, finished=True)
    asked, opened, ended = _written(tokenizer, prompt.messages)
    if ended is None:
        what = f"the template does not write the answer {ANSWER!r} as it is: {_end_of(opened)!r}"
        return [finding("error", what, "mend the template: it has to write an answer as it is")]
    if tokenizer.eos_token not in ended:
        what = (
            f"the template ends an answer with {ended!r}, and the end token {tokenizer.eos_token!r} is not in it: the "
            "model would learn another end than the one that it is served with"
        )
        remedy = "set eos_token in tokenizer_config.json to what ends the template's assistant turn"
        return [finding("error", what, remedy)]
    said = f"{tokenizer.decode(before)}{OPEN}{tokenizer.decode(answer)}{CLOSE}"
    found = [finding("info", f"only what is in {OPEN}{CLOSE} is trained on, the end of the turn included: {said}")]
    if opened != asked:
        what = (
            f"the template writes an answered conversation otherwise than it asks: {_end_of(opened)!r} and not "
            f"{_end_of(asked)!r} is before the answer. What is asked is trained on, as the policy sees it"
        )
        found.append(finding("info", what))
    if "strftime_now" in tokenizer.chat_template:
        what = "the template writes today's date into conversations: on another day the same prompt is another one"
        remedy = "for answers and trainings that can be repeated, give the template a fixed date"
        found.append(finding("warning", what, remedy))
    return [*found, *_padding(tokenizer, where)]


def system_findings(tokenizer: Any, prompts: Sequence[Prompt], where: str = "model.base") -> Iterator[Finding]:
    """Whether the template leaves out a system message that there is. One that refuses it raises by itself."""
    count = sum(any(turn.role == "system" for turn in prompt.messages) for prompt in prompts)
    if count and not takes_system(tokenizer):
        what = f"the chat template leaves system messages out, and {count} of {len(prompts)} prompts have one"
        remedy = "put it into the user's turn, and leave out generate.prompts.system and compare.prompts.system"
        yield Finding(level="error", check="template", where=where, what=what, remedy=remedy)


def _written(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, str, str | None]:
    """What the template writes where it asks, and of the answered conversation what is before the answer and after it.
    None: the answer is not there as it is, and what is before is all of it."""
    turns = [{"role": each.role, "content": each.content} for each in messages]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    turns.append({"role": "assistant", "content": ANSWER})
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    before, answer, after = text.rpartition(ANSWER)
    return (asked, before, after) if answer else (asked, text, None)


def _end_of(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[-most:]


def _padding(tokenizer: Any, where: str) -> Iterator[Finding]:
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        what = f"the pad token is the end token {tokenizer.eos_token!r}; ends are not masked, as masks go by length"
        yield Finding(level="info", check="tokenizer", where=where, what=what)
