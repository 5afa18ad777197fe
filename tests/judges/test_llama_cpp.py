"""The API judge against a real server: llama.cpp's, with the built-in model."""

from pathlib import Path

import pytest

from judges.base import Session
from judges.both_orders import Config as BothOrders
from judges.llm import Config
from judges.rating import Config as Rating
from pipeline.records import Pair, Prompt, Response

pytestmark = pytest.mark.slow


PAIR = Pair.of(
    Prompt.model_validate({"id": "rome", "prompt": "What is the capital of Italy?"}),
    Response(text="Rome.", source="a"),
    Response(text="A banana.", source="b"),
)


def test_label_probabilities_of_a_real_server_are_read_and_remembered(llama_cpp: str, tmp_path: Path) -> None:
    judge = BothOrders(of=Config(model="smollm2", base_url=llama_cpp, price="free", min_label_mass=0.0))
    (verdict,) = judge.build(Session(journal=tmp_path / "journal.sqlite")).judge([PAIR])
    assert verdict.p_a is not None and 0 < verdict.p_a < 1
    for order in ("forward", "reverse"):
        evidence = verdict.evidence[order]["evidence"]
        assert evidence["mode"] == "label" and all(logprob < 0 for logprob in evidence["logits"])
    # What 135M parameters make of the question: the first answer, whichever it is.
    assert verdict.evidence["bias"] > 0
    assert verdict.tokens_in > 200


def test_a_schema_is_kept_to_by_a_real_server(llama_cpp: str) -> None:
    judge = Config(model="smollm2", base_url=llama_cpp, price="free", mode="json", max_tokens=120)
    (verdict,) = judge.build(Session()).judge([PAIR])
    assert verdict.evidence["mode"] == "json"
    assert verdict.p_a in (0.25, 0.75) or verdict.abstained == "unreadable"  # a reason may use up all its tokens


def test_a_real_server_rates_an_answer(llama_cpp: str) -> None:
    judge = Rating(model="smollm2", base_url=llama_cpp, price="free", min_digit_mass=0.0).build(Session())
    scores = judge.score([PAIR.prompt, PAIR.prompt], [PAIR.a, PAIR.b])
    assert all(score is None or 1 <= score <= 9 for score in scores)
