"""An additive position bias cancels exactly, and an answer that one order did not give is not made up."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.base import ask, logit, sigmoid
from judges.both_orders import BothOrdersJudge, Config
from pipeline.errors import JudgeError
from pipeline.records import Pair, Prompt, Response, Verdict

GOOD, BAD = Response(text="good", source="x"), Response(text="bad", source="y")
PAIR = Pair.of(Prompt.model_validate({"id": "p", "prompt": "Which?"}), GOOD, BAD)


class Scripted:
    """Answers with a function of the text shown first; remembers how often it was called."""

    def __init__(self, answer: Callable[[Pair], dict[str, Any]]) -> None:
        self.answer = answer
        self.calls: list[int] = []

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.calls.append(len(pairs))
        return [Verdict(pair_id=pair.id, judge="scripted", fingerprint="f", **self.answer(pair)) for pair in pairs]


def both_orders(answer: Callable[[Pair], dict[str, Any]]) -> BothOrdersJudge:
    return BothOrdersJudge(Config.model_validate({"name": "both_orders", "of": "length"}), Scripted(answer))


def by_order(good_first: dict[str, Any], bad_first: dict[str, Any]) -> Callable[[Pair], dict[str, Any]]:
    return lambda pair: good_first if pair.a.text == "good" else bad_first


def p_good(verdict: Verdict) -> float:
    assert verdict.p_a is not None
    return verdict.p_a if PAIR.a.text == "good" else 1 - verdict.p_a


@given(strength=st.floats(-3, 3), bias=st.floats(-4, 4))
def test_an_additive_position_bias_cancels_exactly(strength: float, bias: float) -> None:
    biased = by_order({"p_a": sigmoid(strength + bias)}, {"p_a": sigmoid(-strength + bias)})
    (verdict,) = both_orders(biased).judge([PAIR])
    assert p_good(verdict) == pytest.approx(sigmoid(strength), abs=1e-9)
    assert verdict.evidence["bias"] == pytest.approx(bias, abs=1e-9)


@pytest.mark.parametrize(
    ("p_first_if_good", "p_first_if_bad", "p", "bias"),
    [
        (0.9, 0.1, 0.9, 0.0),  # no bias: the same answer twice
        (0.9, 0.9, 0.5, math.log(9)),  # always the first one: a tie, and log 9 nats of bias
        (0.9, 0.5, 0.75, math.log(3)),  # logits log 9 and 0: half of log 9 is log 3, and sigmoid(log 3) = 3/4
        (0.5, 0.5, 0.5, 0.0),
        (1.0, 1.0, 0.5, 8.0),  # certainty is clipped at 8 nats, so that it does not become 0/0
    ],
)
def test_two_orders_are_combined_in_logit_space(
    p_first_if_good: float, p_first_if_bad: float, p: float, bias: float
) -> None:
    (verdict,) = both_orders(by_order({"p_a": p_first_if_good}, {"p_a": p_first_if_bad})).judge([PAIR])
    assert p_good(verdict) == pytest.approx(p, abs=1e-12)
    assert verdict.evidence["bias"] == pytest.approx(bias, abs=1e-12)


def test_a_judge_that_always_takes_the_first_answer_gives_an_exact_tie() -> None:
    (verdict,) = both_orders(lambda pair: {"p_a": 0.93}).judge([PAIR])
    assert verdict.is_tie


@pytest.mark.parametrize("reason", ["failed", "unreadable", "refused"])
def test_one_order_without_an_answer_is_an_abstention_and_no_tie(reason: str) -> None:
    for answers in ([{"p_a": 0.9}, {"abstained": reason}], [{"abstained": reason}, {"p_a": 0.9}]):
        (verdict,) = both_orders(by_order(*answers)).judge([PAIR])
        assert (verdict.p_a, verdict.abstained) == (None, reason)


def test_the_reason_does_not_depend_on_the_sides() -> None:
    judge = both_orders(by_order({"abstained": "failed"}, {"abstained": "unreadable"}))
    there, back = judge.judge([PAIR, PAIR.swap()])
    assert there.abstained == back.abstained


def test_the_wrapped_judge_is_called_once_with_both_orders_of_all_pairs() -> None:
    other = Pair.of(PAIR.prompt, GOOD, Response(text="worse", source="y"))
    judge = both_orders(lambda pair: {"p_a": 0.6})
    judge.judge([PAIR, other])
    assert isinstance(judge.of, Scripted)
    assert judge.of.calls == [4]


def test_tokens_and_cost_of_both_orders_are_summed_and_both_are_kept() -> None:
    spent = {"tokens_in": 100, "tokens_out": 1, "cost_usd": 0.25, "evidence": {"raw": "K"}}
    (verdict,) = both_orders(by_order({"p_a": 0.8, **spent}, {"abstained": "unreadable", **spent})).judge([PAIR])
    assert (verdict.tokens_in, verdict.tokens_out, verdict.cost_usd) == (200, 2, 0.5)
    kept = {verdict.evidence["forward"]["abstained"], verdict.evidence["reverse"]["abstained"]}
    assert kept == {None, "unreadable"}
    assert verdict.evidence["forward"]["evidence"] == {"raw": "K"}


def test_the_summary_tells_the_mean_bias_and_how_often_the_order_decided() -> None:
    answers = [
        by_order({"p_a": 0.9}, {"p_a": 0.9}),  # the first one both times: ln 9 nats, a flip
        by_order({"p_a": 0.9}, {"p_a": 0.1}),  # the same answer both times
        by_order({"p_a": 0.9}, {"p_a": 0.5}),  # ln 3 nats; a tie contradicts nobody
        by_order({"p_a": 0.9}, {"abstained": "failed"}),  # not both: not counted
    ]
    verdicts = [both_orders(answer).judge([PAIR])[0] for answer in answers]
    config = both_orders(answers[0]).config
    # (ln 9 + 0 + ln 3) / 3 = ln 3
    assert config.summary(iter(verdicts)) == pytest.approx({"position_bias_nats": math.log(3), "flip_rate": 1 / 3})
    assert config.summary(iter([])) == {}


def test_a_judge_that_drops_a_pair_is_an_error_and_shifts_no_verdict() -> None:
    class Dropping(Scripted):
        def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
            return super().judge(pairs)[1:]

    with pytest.raises(JudgeError, match="asked about 2 pairs, answered 1 verdicts"):
        ask(Dropping(lambda pair: {"p_a": 1.0}), [PAIR, Pair.of(PAIR.prompt, GOOD, GOOD)])


@given(st.floats(-7.9, 7.9))
def test_logit_and_sigmoid_undo_each_other(z: float) -> None:
    assert logit(sigmoid(z)) == pytest.approx(z, abs=1e-9)
    assert sigmoid(z) + sigmoid(-z) == pytest.approx(1.0, abs=1e-15)
