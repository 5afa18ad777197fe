"""The exam through a real API: what the server was told to be is what the exam finds."""

import pytest
from servers import judge_server

from judges.base import Session
from judges.both_orders import Config as BothOrders
from judges.exam import Floors, GoldPair, questions
from judges.grading import ExamReport, grade
from judges.llm import Config as Llm

ROWS = [
    GoldPair(
        id=str(n),
        prompt=f"Question {n}?",
        a=f"An answer, number {n}. quality={0.9 if n % 2 else 0.2}",
        b=f"Another answer, number {n}. quality={0.2 if n % 2 else 0.9}",
        label="a" if n % 2 else "b",
    )
    for n in range(400)
]


def sat(**planted: float) -> ExamReport:
    with judge_server(**planted) as server:
        judge = BothOrders(of=Llm(model="planted", base_url=server.url, price="free"))
        asked = questions([], ROWS, 0, seed=1)
        verdicts = judge.build(Session()).judge([question.pair for question in asked])
    return grade(asked, verdicts, judge, Floors(), seed=1)


@pytest.mark.slow
def test_planted_accuracy_position_bias_and_unreadable_replies_are_found_within_their_intervals() -> None:
    biased, fair = sat(accuracy=0.8, bias=1.5, unreadable=0.03), sat(accuracy=0.8)
    assert biased.gold is not None and biased.gold.accuracy is not None and biased.position is not None
    assert biased.gold.accuracy.low < 0.8 < biased.gold.accuracy.high
    assert biased.position.bias.low - 1e-3 < 1.5 < biased.position.bias.high + 1e-3
    answered = next(check for check in biased.checks if check.name == "answered").found
    assert answered is not None and answered.low < 0.97 < answered.high
    assert set(biased.abstained) == {"unreadable"}
    assert biased.passed, biased.causes
    # Once the place is out, what is left is as good as a judge that never had a favourite place.
    assert fair.gold is not None and fair.gold.accuracy is not None and fair.position is not None
    assert biased.gold.accuracy.value == pytest.approx(fair.gold.accuracy.value, abs=0.01)
    assert fair.position.bias.value == pytest.approx(0, abs=1e-3)
