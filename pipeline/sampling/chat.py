"""One answer of a server that speaks OpenAI's protocol: what is asked, and what of the reply is used. Pure functions.

A request says everything that shapes an answer, because servers take what is not said from defaults of their own (vLLM
from the model's generation_config.json, llama.cpp from its samplers). A reply's text is taken as it is; its numbers are
taken if they are whole, and left out otherwise. What is left out: who is asked (`pool.py`), and for what (`openai.py`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.records import Message

OWN = frozenset(
    {
        "model", "messages", "n", "stream", "seed", "max_tokens", "max_completion_tokens", "temperature", "top_p",
        "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs",
        "return_token_ids",
    }
)  # fmt: skip
"""Fields of a request that this file fills."""

CERTAIN = 1e-3
"""Nats above 0 at which a log-probability is rounding, and no mistake."""

NEVER = -9998.0
"""Nats below which vLLM means minus infinity."""


class Sampling(NamedTuple):
    """How a token is drawn; 0 for `top_k` keeps all."""

    temperature: float
    top_p: float
    top_k: int


PLAIN = Sampling(1.0, 1.0, 0)
"""The model's own distribution, of which log-probabilities are told."""


class Answered(NamedTuple):
    """What came back for one question."""

    text: str
    n_tokens: int | None
    """Tokens sampled, the end of turn included. None: the server did not count."""
    finished: bool | None
    """It ended by itself; False: it was cut. None: the server did not say."""
    logprob: float | None
    """Sum over its tokens, nats. None: not all of them came with one."""
    ids: tuple[int, ...] | None
    """The conversation's token ids and the answer's after them. None: the server gives none."""
    asked: int | None
    """Tokens of the conversation."""
    top: dict[str, float]
    """The likeliest first tokens, with their log-probabilities."""


def body_of(
    model: str, messages: Sequence[Message], sampling: Sampling, tokens: int, seed: int, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """A request for one answer of at most so many tokens."""
    return {
        "model": model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
        "max_tokens": tokens,
        "seed": seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": True,
        "top_logprobs": 1,
        "return_token_ids": True,
        **extra,
    }


def read_answer(content: Any) -> Answered:
    """The answer in a chat completion.

    Raises:
        ValueError: there is none.
    """
    try:
        choice = content["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("refusal") or message.get("content") or ""
        usage = content.get("usage") or {}
        counted, asked = _count(usage.get("completion_tokens")), _count(usage.get("prompt_tokens"))
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ValueError("the reply is no chat completion") from None
    if not isinstance(text, str):
        raise ValueError("the answer is no text")
    ids, prompt = _ids(choice.get("token_ids")), _ids(content.get("prompt_token_ids"))
    if counted is None and ids is not None:
        counted = len(ids)
    told = {"stop": True, "length": False, "content_filter": False}
    return Answered(
        # Half of a surrogate pair is no character: it could be written nowhere.
        text=text.encode("utf-8", "replace").decode(),
        n_tokens=counted,
        finished=told.get(finish) if isinstance(finish, str) else None,
        logprob=_total(_logprobs(choice.get("logprobs")), counted),
        ids=prompt + ids if prompt and ids and len(ids) == counted else None,
        asked=len(prompt) if prompt else asked,
        top=_top(choice.get("logprobs")),
    )


def scoring_body(model: str, ids: Sequence[int]) -> dict[str, Any]:
    """A request for the log-probabilities of these tokens; one token more has to be sampled."""
    return {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1}


def read_score(content: Any, ids: Sequence[int], count: int) -> float | None:
    """The sum over the last `count` of those tokens, nats. None: it did not come with the reply."""
    try:
        told = content["choices"][0]["prompt_logprobs"]
        if len(told) != len(ids):
            return None
        pairs = list(zip(told, ids, strict=True))[-count:]
        return _total([float(each[str(token)]["logprob"]) for each, token in pairs], count)
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        return None


def same_top(one: Mapping[str, float], other: Mapping[str, float], within: float = 0.02) -> bool:
    """Whether two tell the same of the likeliest tokens, to so many nats."""
    return bool(one) and one.keys() == other.keys() and all(abs(one[token] - other[token]) <= within for token in one)


def _total(logprobs: Sequence[float] | None, count: int | None) -> float | None:
    """The sum of the log-probabilities, if there is one for each token and all can be."""
    if logprobs is None or not logprobs or len(logprobs) != count:
        return None
    if not all(NEVER < each <= CERTAIN for each in logprobs):
        return None
    # Rounded, so that the number survives its way through JSON unchanged and reads well.
    return round(math.fsum(logprobs), 6)


def _logprobs(told: Any) -> list[float] | None:
    try:
        return [float(each["logprob"]) for each in told["content"]]
    except (TypeError, KeyError, ValueError):
        return None


def _top(told: Any) -> dict[str, float]:
    try:
        return {str(each["token"]): float(each["logprob"]) for each in told["content"][0]["top_logprobs"]}
    except (TypeError, KeyError, IndexError, ValueError):
        return {}


def _ids(told: Any) -> tuple[int, ...] | None:
    return tuple(told) if isinstance(told, list) and told and all(type(each) is int for each in told) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
