"""What a reply says: two log-probabilities, a label, a score, or nothing that can be read. All pure functions.

A reply is read the way the question asked for it and in no other: a label that is not on offer, two labels where one
was asked for, a number in the middle of a sentence are unreadable, and what is unreadable is never a side, a tie or
a zero. Of several verdicts the last one counts, and only if it is one of those on offer; nobody goes back to an earlier
mention, which may be a quotation of what was judged.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

STRIPPED = " \t\r\n\"'`*_.,:;()[]{}<>"
"""What may stand around a label without changing it: quotes, brackets, Markdown's emphasis, a full stop."""


def label_logprobs(first_tokens: Sequence[tuple[str, float]], labels: tuple[str, str]) -> tuple[float, float] | None:
    """Log-probability (nats) of each label as the first token, its spellings summed.

    A label that is not among the tokens that the server told of gets the most that it can have, and not zero: the
    probability of the last one told, or what all of them leave of 1 if that is less. None: neither is among them.

    Args:
        first_tokens: the likeliest tokens with their log-probabilities.
    """
    found = [
        [logprob for token, logprob in first_tokens if token.strip(STRIPPED).casefold() == label.casefold()]
        for label in labels
    ]
    if not any(found):
        return None
    floor = _most_of_another([logprob for _, logprob in first_tokens])
    first, second = (_logsumexp(each) if each else floor for each in found)
    return first, second


LEAST_LEFT = 1e-7
"""Smallest probability that is left for tokens which were not told of. Servers compute in 32-bit numbers, which are
6e-8 apart just below 1, so that a smaller rest is rounding: a sum of exactly 1 does not make the others impossible."""


def _most_of_another(logprobs: Sequence[float]) -> float:
    """The largest log-probability that a token can have which is none of the likeliest ones, with these."""
    left = 1.0 - math.fsum(math.exp(logprob) for logprob in logprobs)
    return min(*logprobs, math.log(max(left, LEAST_LEFT)))


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return min(0.0, top + math.log(sum(math.exp(value - top) for value in values)))


def label_of(text: str, labels: tuple[str, str]) -> str | None:
    """The label that a reply consists of; None if it is anything else than one label."""
    said = text.strip(STRIPPED).casefold()
    return next((label for label in labels if label.casefold() == said), None)


def last_line(text: str, word: str, labels: tuple[str, str]) -> str | None:
    """The label in the last line that is not empty, which has to be `<word>: <label>` and nothing else."""
    lines = [line.strip(STRIPPED.replace(":", "")) for line in text.splitlines() if line.strip(STRIPPED)]
    match = re.fullmatch(rf"{re.escape(word)}\W*:\W*(\w+)", lines[-1], re.IGNORECASE) if lines else None
    return label_of(match[1], labels) if match else None


def json_field(text: str, field: str) -> Any:
    """A field of a reply that is one JSON object, alone or in a fence; None if it is not, or has the field twice.

    Thoughts before it, in one closed block that the server did not take out, are no part of the reply.
    """
    text = THOUGHTS.sub("", text, count=1)
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", text, re.DOTALL)
    try:
        told = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once, parse_constant=_refused)
    except (ValueError, RecursionError):  # the second: thousands of brackets
        return None
    return told.get(field) if isinstance(told, Mapping) else None


THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        raise ValueError("a key is there twice")
    return found


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def score_of(value: Any, lowest: int, highest: int) -> int | None:
    """A whole number on the scale, as a number or as text that is only that; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}", value.strip(STRIPPED)):
        value = int(value.strip(STRIPPED))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    on_scale = isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest
    return int(value) if on_scale else None


def expected_score(first_tokens: Sequence[tuple[str, float]], lowest: int, highest: int) -> tuple[float, float] | None:
    """The mean of the scores on the scale by their probability as the first token, and that probability together.

    None: no score is among the tokens that the server told of (Lee et al. 2023, arXiv:2309.00267, section 2.3).
    """
    scores = [
        (score, math.exp(logprob))
        for token, logprob in first_tokens
        if (score := score_of(token, lowest, highest)) is not None
    ]
    mass = math.fsum(p for _, p in scores)
    return (math.fsum(score * p for score, p in scores) / mass, min(1.0, mass)) if mass > 0 else None


def share_of_votes(for_it: int, votes: int) -> float:
    """P(better) from `for_it` of so many votes, drawn towards 1/2 by one vote: (k + 1/2) / (n + 1)."""
    return (for_it + 0.5) / (votes + 1)
