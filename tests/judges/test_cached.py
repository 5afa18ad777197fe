"""A question is asked once, an exchanged pair is another question, and a failure is asked again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from judges.both_orders import BothOrdersJudge
from judges.both_orders import Config as BothOrders
from judges.cached import Cached
from judges.cascade import CascadeJudge
from judges.cascade import Config as Cascade
from judges.human import Config as Human
from judges.human import HumanJudge
from judges.panel import Config as Panel
from judges.panel import PanelJudge
from pipeline.errors import JudgeError
from pipeline.records import Pair, Prompt, Response, Verdict
from pipeline.store import Journal

PROMPT = Prompt.model_validate({"id": "p", "prompt": "Which?"})
ONE, TWO = Response(text="one", source="x"), Response(text="number two", source="y")
PAIR = Pair.of(PROMPT, ONE, TWO)


class Scripted:
    """Prefers what is shown first with probability 0.9, or says what it was told to say; counts the questions."""

    def __init__(self, **says: Any) -> None:
        self.says = says or {"p_a": 0.9}
        self.asked: list[Pair] = []

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.asked += pairs
        shown = [{"evidence": {"first": pair.a.text}} | self.says for pair in pairs]
        return [Verdict(pair_id=pairs[i].id, judge="s", fingerprint="f", **said) for i, said in enumerate(shown)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def test_a_verdict_is_asked_for_once_and_comes_back_the_same(journal: Journal) -> None:
    judge = Scripted(p_a=0.1234567890123, evidence={"scores": (1, 2)}, tokens_in=7, cost_usd=0.5)
    first = Cached(judge, "f", journal).judge([PAIR])
    again = Cached(judge, "f", journal).judge([PAIR])
    assert first == again
    assert judge.asked == [PAIR]


def test_only_the_missing_pairs_are_asked_about_and_the_order_is_kept(journal: Journal) -> None:
    pairs = [Pair.of(PROMPT, ONE, Response(text=str(i), source="z")) for i in range(5)]
    judge = Scripted()
    cached = Cached(judge, "f", journal)
    cached.judge(pairs[1:3])
    verdicts = cached.judge(pairs)
    assert [verdict.pair_id for verdict in verdicts] == [pair.id for pair in pairs]
    assert judge.asked == [*pairs[1:3], pairs[0], *pairs[3:]]


def test_a_swapped_pair_is_a_question_of_its_own(journal: Journal) -> None:
    # A judge that always takes the first answer must be replayed as it answered, or its bias would vanish.
    judge = Scripted()
    cached = Cached(judge, "f", journal)
    forward, reverse = cached.judge([PAIR, PAIR.swap()])
    assert (forward.p_a, reverse.p_a) == (0.9, 0.9)
    assert forward.evidence["first"] == PAIR.a.text
    assert reverse.evidence["first"] == PAIR.b.text
    assert cached.judge([PAIR.swap(), PAIR]) == [reverse, forward]
    assert len(judge.asked) == 2


@pytest.mark.parametrize("reason", ["failed", "refused", "filtered"])
def test_a_passing_trouble_is_not_stored(journal: Journal, reason: str) -> None:
    assert Cached(Scripted(abstained=reason), "f", journal).judge([PAIR])[0].abstained == reason
    assert Cached(Scripted(), "f", journal).judge([PAIR])[0].p_a == 0.9


@pytest.mark.parametrize("reason", ["unreadable", "conflict", "empty", "no_vote"])
def test_a_lasting_abstention_is_stored(journal: Journal, reason: str) -> None:
    Cached(Scripted(abstained=reason), "f", journal).judge([PAIR])
    assert Cached(Scripted(), "f", journal).judge([PAIR])[0].abstained == reason


@pytest.mark.parametrize("around", [None, "both_orders", "panel", "cascade", "human"])
@pytest.mark.parametrize(("reason", "stored"), [("failed", False), ("filtered", False), ("unreadable", True)])
def test_a_verdict_that_lacks_a_panels_member_in_passing_is_not_stored_whoever_asked_the_panel(
    reason: str, stored: bool, around: str | None, journal: Journal, tmp_path: Path
) -> None:
    row = {"prompt": "Another?", "response_a": "one", "response_b": "two", "rater": "ana", "choice": "a"}
    (tmp_path / "votes.jsonl").write_text(json.dumps(row), encoding="utf-8")

    def wrapped(one: Scripted, other: Scripted) -> Any:
        of = [{"judge": "rules", "weight": 1.0}, {"judge": "length", "weight": 1.0}]
        config = Panel.model_validate({"of": of, "quorum": 1})
        panel = PanelJudge(config, [one, other])
        if around == "both_orders":
            return BothOrdersJudge(BothOrders.model_validate({"of": "rules"}), panel)
        if around == "panel":
            return PanelJudge(config, [panel, Scripted(p_a=0.9)])
        if around == "cascade":
            return CascadeJudge(
                Cascade.model_validate({"cheap": "rules", "dear": "length"}), Scripted(abstained="unreadable"), panel
            )
        if around == "human":
            votes = {"files": [tmp_path / "votes.jsonl"]}
            return HumanJudge(Human.model_validate({"votes": votes, "otherwise": "rules"}), panel)
        return panel

    first = Cached(wrapped(Scripted(p_a=0.9), Scripted(abstained=reason)), "f", journal).judge([PAIR])[0]
    assert first.p_a is not None
    again = Cached(wrapped(Scripted(p_a=0.9), Scripted(p_a=0.8)), "f", journal).judge([PAIR])[0]
    assert (again == first) == stored


def test_what_was_too_long_is_asked_again_of_a_server_and_not_of_a_model_in_this_process(journal: Journal) -> None:
    for by_prompt, again in ((True, "truncated"), (False, None)):
        judge = Scripted(abstained="truncated")
        Cached(judge, f"f{by_prompt}", journal, by_prompt=by_prompt).judge([PAIR])
        (verdict,) = Cached(Scripted(), f"f{by_prompt}", journal, by_prompt=by_prompt).judge([PAIR])
        assert verdict.abstained == again


def test_another_fingerprint_is_another_judge(journal: Journal) -> None:
    Cached(Scripted(p_a=0.9), "f", journal).judge([PAIR])
    assert Cached(Scripted(p_a=0.2), "g", journal).judge([PAIR])[0].p_a == 0.2


@pytest.mark.parametrize(
    ("changed", "asked_again"),
    [
        ({"a": PAIR.a.model_copy(update={"text": "other"})}, True),
        ({"a": PAIR.a.model_copy(update={"finished": False})}, True),
        ({"prompt": PROMPT.model_copy(update={"lang": "fr"})}, True),
        ({"prompt": PROMPT.model_copy(update={"reference": "two"})}, True),
        ({"a": PAIR.a.model_copy(update={"logprob": -12.5, "ref_logprob": -13.0, "n_tokens": 4})}, False),
    ],
)
def test_a_pair_is_asked_about_again_when_what_the_judge_sees_has_changed(
    journal: Journal, changed: dict[str, Any], asked_again: bool
) -> None:
    judge = Scripted()
    cached = Cached(judge, "f", journal)
    cached.judge([PAIR])
    cached.judge([PAIR.model_copy(update=changed)])
    assert len(judge.asked) == 1 + asked_again


def test_a_pair_that_is_there_twice_is_asked_about_once(journal: Journal) -> None:
    judge = Scripted()
    assert len(Cached(judge, "f", journal).judge([PAIR, PAIR])) == 2
    assert len(judge.asked) == 1


def test_a_judge_in_this_process_is_asked_prompt_by_prompt_and_a_kill_loses_one(tmp_path: Path) -> None:
    calls: list[int] = []

    class Killed(Scripted):
        def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
            calls.append(len(pairs))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().judge(pairs)

    texts = [Response(text=str(number), source="z") for number in range(2)]
    prompts = [PROMPT.model_copy(update={"id": name}) for name in "abcd"]
    pairs = [Pair.of(prompt, ONE, text) for prompt in prompts for text in texts]
    journal = Journal(tmp_path / "journal.sqlite")
    with pytest.raises(KeyboardInterrupt):
        Cached(Killed(), "f", journal, by_prompt=True).judge(pairs)
    assert calls == [2, 2, 2]
    after = Scripted()
    verdicts = Cached(after, "f", journal, by_prompt=True).judge(pairs)
    assert after.asked == pairs[4:]
    assert [verdict.pair_id for verdict in verdicts] == [pair.id for pair in pairs]


def test_of_two_processes_that_ask_at_once_the_first_answer_stands(journal: Journal) -> None:
    class Overtaken(Scripted):
        def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
            Cached(Scripted(p_a=0.3), "f", journal).judge(pairs)
            return super().judge(pairs)

    assert Cached(Overtaken(p_a=0.7), "f", journal).judge([PAIR])[0].p_a == 0.3


def test_a_judge_that_mixes_up_its_pairs_stores_nothing(journal: Journal) -> None:
    class Reversing(Scripted):
        def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
            return super().judge(pairs)[::-1]

    pairs = [PAIR, Pair.of(PROMPT, ONE, ONE)]
    with pytest.raises(JudgeError):
        Cached(Reversing(), "f", journal).judge(pairs)
    healthy = Scripted()
    Cached(healthy, "f", journal).judge(pairs)
    assert len(healthy.asked) == 2
