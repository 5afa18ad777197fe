"""`length` counts characters and nothing else."""

from typing import Literal

import pytest

from judges.base import Session
from judges.length import Config
from pipeline.records import Pair, Prompt, Response

PROMPT = Prompt.model_validate({"id": "p", "prompt": "Say something."})


@pytest.mark.parametrize(
    ("prefer", "a", "b", "p_a"),
    [
        ("longer", "three", "two", 1.0),
        ("longer", "two", "three", 0.0),
        ("shorter", "three", "two", 0.0),
        ("shorter", "two", "three", 1.0),
        ("longer", "same", "size", 0.5),
        ("shorter", "same", "size", 0.5),
        ("longer", "", "x", 0.0),
        ("longer", "été", "ete", 0.5),  # characters, not bytes
    ],
)
def test_the_longer_or_the_shorter_answer_wins_and_equal_lengths_tie(
    prefer: Literal["longer", "shorter"], a: str, b: str, p_a: float
) -> None:
    pair = Pair(id="x", prompt=PROMPT, a=Response(text=a, source="s"), b=Response(text=b, source="t"))
    (verdict,) = Config(prefer=prefer).build(Session()).judge([pair])
    assert verdict.p_a == p_a
    assert verdict.evidence == {"length_a": len(a), "length_b": len(b)}
