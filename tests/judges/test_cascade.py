"""The dear judge is asked only where the cheap one is unsure, and what that saved is told."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted.judge import Config as Scripted
from tiny import prompt_of, response_of

from judges.base import Session
from judges.cascade import CascadeJudge, Config
from pipeline.records import Pair, Verdict

PAIRS = [
    Pair.of(prompt_of(f"question {i}"), response_of(f"answer {i}", "x"), response_of("other", "y")) for i in range(4)
]


class Scores:
    """Says what a list holds for the pairs of PAIRS; remembers what it was asked about."""

    def __init__(self, *says: float | str, cost: float = 0.0) -> None:
        self.says = dict(zip((pair.id for pair in PAIRS), says, strict=False))
        self.cost = cost
        self.asked: list[str] = []

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.asked += [pair.id for pair in pairs]
        return [self._one(pair.id, self.says[pair.id]) for pair in pairs]

    def _one(self, name: str, said: float | str) -> Verdict:
        what: dict[str, Any] = {"abstained": said} if isinstance(said, str) else {"p_a": said}
        return Verdict(pair_id=name, judge="s", fingerprint="f", cost_usd=self.cost, tokens_in=10, **what)


def cascade(cheap: Scores, dear: Scores, **options: Any) -> CascadeJudge:
    return CascadeJudge(Config.model_validate({"cheap": "rules", "dear": "length", **options}), cheap, dear)


def test_the_cheap_verdict_stands_from_the_threshold_on_either_side() -> None:
    dear = Scores(0.3, 0.3, 0.3, 0.3)
    verdicts = cascade(Scores(0.9, 0.8, 0.79, 0.2), dear, threshold=0.8).judge(PAIRS)
    assert dear.asked == [PAIRS[2].id]
    assert [verdict.p_a for verdict in verdicts] == pytest.approx([0.9, 0.8, 0.3, 0.2])
    assert [verdict.evidence["decided_by"] for verdict in verdicts] == ["cheap", "cheap", "dear", "cheap"]


def test_what_the_cheap_one_cannot_tell_is_the_dear_ones_to_say() -> None:
    verdicts = cascade(Scores("unreadable", 0.5), Scores(0.9, "refused")).judge(PAIRS[:2])
    assert (verdicts[0].p_a, verdicts[0].abstained) == (0.9, None)
    assert verdicts[1].p_a is None
    assert (verdicts[1].abstained, verdicts[1].evidence["decided_by"]) == ("refused", None)


def test_a_temperature_makes_a_boastful_judge_ask() -> None:
    # 16/17 is ln 16; divided by 2 it is ln 4, which is 0.8.
    boastful = Scores(16 / 17, 15 / 16)
    dear = Scores(0.3, 0.3)
    verdicts = cascade(boastful, dear, temperature=2.0, threshold=0.8 - 1e-9).judge(PAIRS[:2])
    assert dear.asked == [PAIRS[1].id]
    assert verdicts[0].p_a == pytest.approx(0.8)


def test_the_dear_judge_is_asked_once_about_all_that_is_left_and_not_at_all_if_nothing_is() -> None:
    calls: list[int] = []

    class Counting(Scores):
        def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
            calls.append(len(pairs))
            return super().judge(pairs)

    cascade(Scores(0.5, 0.9, 0.5, 0.5), Counting(0.3, 0.3, 0.3, 0.3)).judge(PAIRS)
    cascade(Scores(0.9, 0.9), Counting(0.3, 0.3)).judge(PAIRS[:2])
    assert calls == [3]


def test_the_bill_is_of_who_was_asked_and_the_summary_tells_the_saving() -> None:
    judge = cascade(Scores(0.9, 0.9, 0.9, 0.5, cost=0.01), Scores(0, 0, 0, 0.9, cost=0.20))
    verdicts = judge.judge(PAIRS)
    assert [verdict.cost_usd for verdict in verdicts] == pytest.approx([0.01, 0.01, 0.01, 0.21])
    assert [verdict.tokens_in for verdict in verdicts] == [10, 10, 10, 20]
    # All four by the dear judge: 0.80. Spent: 0.24. So 70 % is saved, and one in four was passed on.
    assert judge.config.summary(iter(verdicts)) == pytest.approx({"escalation_rate": 0.25, "saving_rate": 0.7})


def test_without_a_bill_only_the_rate_is_told() -> None:
    judge = cascade(Scores(0.9, 0.5), Scores(0.1, 0.1))
    assert judge.config.summary(iter(judge.judge(PAIRS[:2]))) == {"escalation_rate": 0.5}
    assert judge.config.summary(iter([])) == {}


@pytest.mark.parametrize("swapped", [lambda pair: pair, Pair.swap])
def test_who_decides_does_not_depend_on_the_sides(swapped: Callable[[Pair], Pair]) -> None:
    judge = Config.model_validate({"cheap": "rules", "dear": "length", "threshold": 0.7}).build(Session())
    sound, cut = response_of("Air scatters blue light."), response_of("It is", "y", finished=False)
    (verdict,) = judge.judge([swapped(Pair.of(prompt_of("Why is the sky blue?"), sound, cut))])
    assert verdict.evidence["decided_by"] == "cheap"


def test_a_cascade_is_order_free_if_both_are() -> None:
    assert Config.model_validate({"cheap": "rules", "dear": "length"}).order_free
    assert not Config.model_validate({"cheap": "rules", "dear": "local_llm"}).order_free


def test_a_cascade_asks_about_as_much_at_once_as_its_api_can_use_and_lacks_what_either_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    llm = {"name": "llm", "model": "m", "price": "free", "api_key_env": "NO_SUCH_KEY"}
    config = Config.model_validate({"cheap": "rules", "dear": {"name": "both_orders", "of": llm}})
    assert not config.remote  # what is cheap computes here, in as many processes as there are
    assert config.window == config.dear.window > 1
    (lacking,) = config.lacks()
    assert "NO_SUCH_KEY" in lacking


def test_swapping_a_cascade_for_its_dear_judge_and_back_asks_only_what_was_not_asked(tmp_path: Path) -> None:
    from judges.cached import member

    Scripted.ASKED.clear()
    session = Session(journal=tmp_path / "journal.sqlite")
    pairs = [
        Pair.of(prompt_of("Is it?"), response_of("score=9 a" + "!" * i, "x"), response_of("score=1", "y"))
        for i in range(3)
    ]
    config = Config.model_validate({"cheap": "rules", "dear": Scripted()})  # rules sees no fault in any of them
    first = member(config, session).judge(pairs)
    assert sum(map(len, Scripted.ASKED)) == 3
    member(Scripted(), session).judge(pairs)
    assert member(config, session).judge(pairs) == first
    assert sum(map(len, Scripted.ASKED)) == 3
