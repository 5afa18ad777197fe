"""One answer of a vLLM server: the request, and what can be learned from of the reply. Pure functions.

Token ids go in and out, so no text is encoded again. What comes back is taken for the policy's own answer, with its
log-probabilities, only if nothing about it says otherwise. What is left out: the server (`ppo_server.py`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """One answer that is wanted."""

    ids: tuple[int, ...]
    """The conversation's token ids."""
    seed: int


class Sampling(NamedTuple):
    """How answers are sampled: from the policy as it is, at this temperature."""

    temperature: float
    max_new_tokens: int
    eos: frozenset[int]
    """What ends an answer."""
    vocabulary: int | None = None
    """Token ids are below it. None: not known yet."""


class Answered(NamedTuple):
    """Token ids with the end of turn, and the log-probability of each at the sampling temperature, in nats."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def body_of(model: str, asked: Asked, sampling: Sampling) -> dict[str, Any]:
    """A request for one answer, sampled from the policy as it is."""
    return {
        "model": model,
        "prompt": list(asked.ids),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        # All of them, because vLLM takes what is not said from the model's generation_config.json.
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": asked.seed,
        "stop_token_ids": sorted(sampling.eos),
        "logprobs": 1,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def read_answer(content: Any, model: str, asked: Asked, sampling: Sampling) -> Answered:
    """The answer in a completion.

    Raises:
        ValueError: it cannot be learned from, as `what was found; what to do`.
    """
    choice = _choice(content)
    answered_by = content.get("model")
    if answered_by != model:
        raise ValueError(f"{answered_by!r} answered, and {model!r} was asked; is there a proxy in between?")
    seen = choice.get("prompt_token_ids")
    if seen is not None and list(seen) != list(asked.ids):
        raise ValueError(
            f"it read {len(seen)} token ids, and not the {len(asked.ids)} it was given; is there a proxy in between?"
        )
    tokens, logprobs = _token_ids(choice), _logprobs(choice)
    if len(tokens) != len(logprobs) or not 1 <= len(tokens) <= sampling.max_new_tokens:
        raise ValueError(
            f"{len(tokens)} token ids and {len(logprobs)} log-probabilities came for an answer of at most "
            f"{sampling.max_new_tokens}; one for each is needed"
        )
    if sampling.vocabulary is not None and not 0 <= min(tokens) <= max(tokens) < sampling.vocabulary:
        raise ValueError(
            f"token id {max(tokens)} came, and the base has {sampling.vocabulary}; serve the base that the recipe names"
        )
    ends = [place for place, token in enumerate(tokens) if token in sampling.eos]
    if ends and ends[0] + 1 < len(tokens):
        raise ValueError(f"an answer goes on after its end, token id {tokens[ends[0]]}; is ignore_eos set?")
    if not ends and len(tokens) < sampling.max_new_tokens:
        raise ValueError(
            f"an answer stops after {len(tokens)} of {sampling.max_new_tokens} tokens without an end (finish_reason "
            f"{choice.get('finish_reason')!r}, stop_reason {choice.get('stop_reason')!r}); serve the base that the "
            "recipe names, with a --max-model-len that has room"
        )
    return Answered(tokens, logprobs)


def first_tokens(content: Any) -> dict[str, float]:
    """The likeliest first tokens of a completion that was read, with their log-probabilities."""
    try:
        told = _choice(content)["logprobs"]["top_logprobs"][0]
        return {str(token): float(value) for token, value in told.items()}
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        return {}


def _choice(content: Any) -> dict[str, Any]:
    try:
        choice: dict[str, Any] = content["choices"][0]
        choice.get("index")
        return choice
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ValueError("the reply is no completion; is it vLLM?") from None


def _token_ids(choice: Mapping[str, Any]) -> tuple[int, ...]:
    """`token_ids`, or where a server is too old for them those that stand for the tokens: `token_id:17`."""
    try:
        told = choice.get("token_ids")
        if told is None:
            told = [int(token.removeprefix("token_id:")) for token in choice["logprobs"]["tokens"]]
        if all(type(token) is int for token in told):
            return tuple(told)
    except (TypeError, KeyError, AttributeError, ValueError):
        pass
    raise ValueError("no token ids came with the answer; it has to be a vLLM that knows return_token_ids")


def _logprobs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
    except (TypeError, KeyError, ValueError):
        raise ValueError("no log-probabilities came with the answer; it has to be a vLLM that gives them") from None
    wrong = next((value for value in found if not (math.isfinite(value) and value <= 1e-3)), None)
    if wrong is not None:
        raise ValueError(f"a log-probability is {wrong}; start the server without --logprobs-mode ...logits")
    return found


def is_raw(at_1: Mapping[str, float], at_t: Mapping[str, float], temperature: float) -> bool:
    """Log-probabilities that were asked for at a temperature are nearer to those of temperature 1."""
    both = sorted(at_1.keys() & at_t.keys(), key=lambda token: at_1[token])
    if len(both) < 2:
        return False
    gap_1, gap_t = (told[both[-1]] - told[both[0]] for told in (at_1, at_t))
    return abs(gap_t - gap_1) < abs(gap_t - gap_1 / temperature)
