"""Rewards that a recipe names as functions, right and wrong ones."""

from collections.abc import Sequence
from typing import Any

from pipeline.records import Prompt, Response


def letters(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """The share of ASCII letters; None for an empty answer."""
    shares: list[float | None] = []
    for response in responses:
        letters = sum(each.isascii() and each.isalpha() for each in response.text)
        shares.append(letters / len(response.text) if response.text else None)
    return shares


def too_few(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    return [0.0] * (len(responses) - 1)


def no_number(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Any]:
    return ["good"] * len(responses)


def infinite(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    return [float("inf")] * len(responses)


NOT_A_FUNCTION = 1
