"""Rewards that a recipe names as functions, right and wrong ones."""

from collections.abc import Sequence
from typing import Any

from pipeline.records import Prompt, Response


def letters(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    """The share of the letter e; None for an empty answer."""
    return [response.text.count("e") / len(response.text) if response.text else None for response in responses]


def too_few(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    return [0.0] * (len(responses) - 1)


def no_number(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Any]:
    return ["good"] * len(responses)


def infinite(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
    return [float("inf")] * len(responses)


NOT_A_FUNCTION = 1
