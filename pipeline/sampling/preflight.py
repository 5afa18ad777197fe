"""What can be known of servers before a run: are they there, with the model, with room, and what do they tell.

Each is asked for its list of models and for one token. What is left out: requests (`served.py`), and the doctor, who
asks for this (`pipeline.doctor`).
"""

import asyncio
from collections.abc import Iterator, Sequence

from pipeline.errors import ModelError
from pipeline.findings import Finding, Level
from pipeline.sampling.base import Question
from pipeline.sampling.pool import Failed
from pipeline.sampling.served import Served

CHECK = "server"


def look_at(served: Sequence[Served], question: Question, max_new_tokens: int) -> Iterator[Finding]:
    """What is found at each server. That one of several is away is a warning; all, where they are needed at once, an
    error."""
    found = asyncio.run(_each(served, question, max_new_tokens))
    away = sum(isinstance(each, Failed) and not each.final for each in found)
    for one, each in zip(served, found, strict=True):
        if isinstance(each, Failed):
            level: Level = "error" if each.final or (away == len(found) and not question.later) else "warning"
            remedy = "mend base_urls, model or api_key_env" if each.final else "start the server, or mend base_urls"
            yield _finding(question, level, one, str(each), remedy)
        else:
            yield from each


async def _each(served: Sequence[Served], question: Question, tokens: int) -> list[list[Finding] | Failed]:
    async def looked(one: Served) -> list[Finding] | Failed:
        try:
            return await _one(one, question, tokens)
        except Failed as failed:
            return failed
        finally:
            await one.server.close()

    return await asyncio.gather(*(looked(each) for each in served))


async def _one(one: Served, question: Question, tokens: int) -> list[Finding]:
    await one.begin()
    found = []
    longest = question.longest
    if one.room is not None and (longest or 0) + tokens > one.room:
        what = f"it takes {one.room} tokens, and max_new_tokens is {tokens}"
        what += f" after prompts of up to {longest}" if longest else ""
        remedy = "lower max_new_tokens, or start the server with more (--max-model-len)"
        return [_finding(question, "error", one, what, remedy)]
    if question.adapters and not await one.takes_adapters():
        remedy = "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment and with --enable-lora, or "
        remedy += "let policies answer here (compare.sampler: {name: local, ...})"
        found.append(_finding(question, "error", one, "it takes no adapters while it runs", remedy))
    try:
        answered = await one.ask(one.model, None, question.messages, 1, 1, "a question of the doctor")
    except ModelError as error:
        what, _, remedy = str(error).removeprefix(f"{one.server.base_url}: ").partition("; ")
        return [*found, _finding(question, "error", one, what, remedy)]
    if question.rendered is not None and answered.asked not in (None, question.rendered):
        what = f"it reads {answered.asked} tokens where the recipe's base has {question.rendered} for one conversation"
        remedy = "does it serve the recipe's base, with the chat template that this came with?"
        found.append(_finding(question, "warning", one, what, remedy))
    if question.reference and (answered.logprob is None or await one.under_base(answered) is None):
        what = "it does not tell the log-probabilities that KL is computed from"
        remedy = "serve with vLLM, or do without KL in the report: its answers are compared all the same"
        found.append(_finding(question, "warning", one, what, remedy))
    return found or [_finding(question, "info", one, f"it serves {one.model}")]


def _finding(question: Question, level: Level, one: Served, what: str, remedy: str = "") -> Finding:
    where = f"{question.where}.base_urls"
    return Finding(level=level, check=CHECK, where=where, what=f"{one.server.base_url}: {what}", remedy=remedy)
