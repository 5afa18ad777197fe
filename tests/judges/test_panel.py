"""Weights are log-odds of accuracy, the panel's logit is their mean, and who did not answer is not made up."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scripted.judge import Config as Scripted
from tiny import prompt_of, response_of

from judges.base import Session
from judges.panel import Config, Member, PanelJudge, members_of
from pipeline.records import Pair, Verdict


class Fixed:
    """Says the same of every pair."""

    def __init__(self, **says: Any) -> None:
        self.says = says

    def judge(self, pairs: Any) -> list[Verdict]:
        return [Verdict(pair_id=pair.id, judge="fixed", fingerprint="f", **self.says) for pair in pairs]


PAIR = Pair.of(prompt_of("Which?"), response_of("one", "x"), response_of("two", "y"))
ACCURATE, FAIR = {"accuracy": 0.9}, {"accuracy": 0.75}


def panel(*says: dict[str, Any], of: Any = None, **options: Any) -> PanelJudge:
    names = ("rules", "length", {"name": "length", "prefer": "shorter"})
    members = of or [{"judge": names[i], "weight": 1.0} for i in range(len(says))]
    config = Config.model_validate({"name": "panel", "of": members, **options})
    return PanelJudge(config, [Fixed(**each) for each in says])


def verdict_of(judge: PanelJudge) -> Verdict:
    (verdict,) = judge.judge([PAIR])
    return verdict


def test_a_weight_is_the_log_odds_of_the_accuracy_or_as_it_is_given() -> None:
    shares = [Member.model_validate({"judge": "rules", **each}).share for each in (ACCURATE, FAIR, {"weight": 0.3})]
    assert shares == pytest.approx([math.log(9), math.log(3), 0.3])


def test_the_panels_logit_is_the_weighted_mean_of_its_members() -> None:
    # Weights ln 9 = 2 ln 3 and ln 3 are as 2 to 1; logits ln 4 and -ln 2 = -ln(4)/2: (2 - 1/2) / 3 ln 4 = ln 2.
    of = [{"judge": "rules", **ACCURATE}, {"judge": "length", **FAIR}]
    assert verdict_of(panel({"p_a": 0.8}, {"p_a": 1 / 3}, of=of)).p_a == pytest.approx(2 / 3)


def test_a_temperature_takes_the_boast_out_of_a_member() -> None:
    of = [{"judge": "rules", "weight": 1.0, "temperature": 2.0}, {"judge": "length", "weight": 1.0}]
    # ln 16 / 2 = ln 4 and -ln 4: nothing is left.
    assert verdict_of(panel({"p_a": 16 / 17}, {"p_a": 0.2}, of=of)).p_a == pytest.approx(0.5)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.1, 5)), min_size=2, max_size=3))
def test_it_is_the_weighted_mean_for_any_members(drawn: list[tuple[float, float]]) -> None:
    names = ("rules", "length", {"name": "length", "prefer": "shorter"})
    of = [{"judge": name, "weight": weight} for name, (_, weight) in zip(names, drawn, strict=False)]
    p, w = np.array(drawn).T
    z = np.average(np.log(p / (1 - p)), weights=w)
    assert verdict_of(panel(*({"p_a": each} for each in p.tolist()), of=of)).p_a == pytest.approx(1 / (1 + np.exp(-z)))


@pytest.mark.parametrize(
    ("quorum", "answering", "answers"), [(None, 2, True), (None, 1, False), (1, 1, True), (3, 2, False), (3, 3, True)]
)
def test_those_that_answered_decide_if_they_are_enough(quorum: int | None, answering: int, answers: bool) -> None:
    says = [{"p_a": 0.9}] * answering + [{"abstained": "failed"}] * (3 - answering)
    verdict = verdict_of(panel(*says, quorum=quorum))
    if answers:
        assert verdict.p_a == pytest.approx(0.9)  # of their mean, with nothing put in for who was silent
    else:
        assert (verdict.p_a, verdict.abstained) == (None, "failed")


def test_the_evidence_keeps_what_each_member_said_and_the_bill_is_the_sum() -> None:
    spent = {"tokens_in": 10, "tokens_out": 2, "cost_usd": 0.25}
    verdict = verdict_of(panel({"p_a": 0.9, **spent}, {"abstained": "refused", **spent}, {"p_a": 0.6}))
    assert [(each["p_a"], each["abstained"]) for each in verdict.evidence["members"]] == [
        (0.9, None), (None, "refused"), (0.6, None),
    ]  # fmt: skip
    assert (verdict.tokens_in, verdict.tokens_out, verdict.cost_usd) == (20, 4, 0.5)
    alone = [Fixed(p_a=0.9), Fixed(abstained="refused"), Fixed(p_a=0.6)]
    assert members_of(verdict) == [judge.judge([PAIR])[0] for judge in alone]
    assert members_of(alone[0].judge([PAIR])[0]) == []


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"of": [{"judge": "rules"}, {"judge": "length", "weight": 1}]}, "rules needs `accuracy`, measured on gold"),
        ({"of": [{"judge": "rules", "weight": 1, "accuracy": 0.7}] * 2}, "rules needs `accuracy`"),
        ({"of": [{"judge": "rules", "weight": 1}] * 2}, "rules is a member twice"),
        ({"of": [{"judge": "rules", "weight": 1}, {"judge": "length", "weight": 1}], "quorum": 3}, "there are 2"),
        ({"of": [{"judge": "rules", "accuracy": 0.5}, {"judge": "length", "weight": 1}]}, "greater than 0.5"),
    ],
)
def test_a_panel_that_could_not_be_weighed_is_refused_before_anything_loads(
    block: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(block)


def test_a_panel_is_order_free_and_remote_if_all_its_members_are() -> None:
    fair = {"judge": "rules", "weight": 1}
    config = Config.model_validate({"of": [fair, {"judge": "local_llm", "weight": 1}]})
    assert (config.order_free, config.remote) == (False, False)
    both = {"judge": {"name": "both_orders", "of": "local_llm"}, "weight": 1}
    assert Config.model_validate({"of": [fair, both]}).order_free


def test_a_panel_lacks_what_its_members_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    llm = {"name": "llm", "model": "m", "price": "free", "api_key_env": "NO_SUCH_KEY"}
    members = [{"judge": judge, "weight": 1} for judge in ("rules", llm, {**llm, "model": "n"})]
    config = Config.model_validate({"of": members})
    assert len(list(config.lacks())) == 2
    assert config.window == config.of[1].judge.window > 1


def test_the_summary_counts_pairs_on_which_members_disagree() -> None:
    says = [(0.9, 0.8), (0.9, 0.2), (0.5, 0.2), (None, 0.2)]
    verdicts = [
        verdict_of(panel(*({"p_a": p} if p is not None else {"abstained": "failed"} for p in each), quorum=1))
        for each in says
    ]
    config = panel({"p_a": 0.5}, {"p_a": 0.5}).config
    assert config.summary(iter(verdicts)) == {"split_rate": 0.25, "member_silent_rate": 0.25}
    assert config.summary(iter([])) == {}


def test_a_member_that_another_recipe_asked_is_not_asked_again(tmp_path: Path) -> None:
    Scripted.ASKED.clear()
    session = Session(journal=tmp_path / "journal.sqlite")
    pairs = [Pair.of(prompt_of(f"{i}?"), response_of("score=9", "x"), response_of("score=1", "y")) for i in range(3)]
    of = [{"judge": Scripted(), "weight": 1.0}, {"judge": "length", "weight": 2.0}]
    first = Config.model_validate({"of": of}).build(session).judge(pairs)
    assert sum(map(len, Scripted.ASKED)) == 3
    other = Config.model_validate({"of": [*of[:1], {"judge": "rules", "weight": 1.0}]})
    other.build(session).judge(pairs)
    assert Config.model_validate({"of": of}).build(session).judge(pairs) == first
    assert sum(map(len, Scripted.ASKED)) == 3


def test_three_that_err_together_do_not_outvote_a_good_one() -> None:
    # Accuracy 0.95 against two at 0.6: ln 19 = 2.94 against 0.81, so two equal voices do not turn it.
    of = [
        {"judge": "rules", "accuracy": 0.95},
        {"judge": "length", "accuracy": 0.6},
        {"judge": {"name": "length", "prefer": "shorter"}, "accuracy": 0.6},
    ]
    assert (verdict_of(panel({"p_a": 0.8}, {"p_a": 0.2}, {"p_a": 0.2}, of=of)).p_a or 0) > 0.5
