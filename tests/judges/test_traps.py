"""What other pipelines get wrong without a word, each against the path that our verdicts take.

The faults were found by reading their sources: open-instruct, distilabel, HALOs, FastChat, ms-swift and safe-rlhf turn
something that is no answer into a preference, a tie, a number or a crash.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted.judge import Config as Scripted
from tiny import job_of, make_reward_model, prompt_of, response_of, said

from judges.base import Session
from judges.both_orders import BothOrdersJudge
from judges.both_orders import Config as BothOrders
from judges.cascade import CascadeJudge
from judges.cascade import Config as Cascade
from judges.local_llm import Config as LocalLlm
from judges.pairwise import PairwiseJudge, Question, Reading
from judges.panel import Config as Panel
from judges.panel import PanelJudge
from judges.reward_model import Config as RewardModel
from judges.verdicts import label_of, last_line, score_of
from pipeline import label, store, views
from pipeline.label import Labelling
from pipeline.models import ModelConfig
from pipeline.ratings import compare_checkpoints, describe
from pipeline.recipe import LabelConfig
from pipeline.records import ABSTENTIONS, Pair, Preference, Verdict


def pairs_of(question: str, *texts: str) -> list[Pair]:
    answers = [response_of(text, "s", index) for index, text in enumerate(texts)]
    return [Pair.of(prompt_of(question), one, other) for one, other in itertools.combinations(answers, 2)]


def labelled(pairs: Sequence[Pair], top: Path, **limits: Any) -> tuple[list[Preference], list[Verdict], dict[str, Any]]:
    """What the label step leaves, asked as a recipe asks it."""
    store.make_dirs(top / "generate")
    store.write_jsonl(top / "generate" / "pairs.jsonl", pairs)
    config = Labelling(judge=Scripted(), label=LabelConfig(max_abstained=1.0, **limits), pairing="all")
    job = job_of(top, config, inputs={"generate": top / "generate"})
    label.work(job)
    label.finish(job)
    return (
        list(store.read_jsonl(job.out / "preferences.jsonl", Preference)),
        list(store.read_jsonl(job.out / "verdicts.jsonl", Verdict)),
        json.loads((job.out / "summary.json").read_text()),
    )


# open-instruct, synthetic_preference_dataset.py:156: a condition that cannot be true makes element 0 the chosen one


def test_the_chosen_answer_is_the_one_that_the_judge_prefers_and_no_fixed_place(tmp_path: Path) -> None:
    pairs = [pair for number in range(40) for pair in pairs_of(f"question {number}", "score=9", "score=1")]
    assert 5 < sum(pair.a.text == "score=9" for pair in pairs) < 35  # the better one is on either side
    preferences, _, _ = labelled(pairs, tmp_path)
    assert [each.chosen.text for each in preferences] == ["score=9"] * 40


# the same: a call that failed gives None and stops the writer


def test_a_call_that_failed_is_an_abstention_and_the_rest_is_written(tmp_path: Path) -> None:
    preferences, verdicts, summary = labelled(
        [*pairs_of("one?", "open=failed", "score=1"), *pairs_of("two?", "score=9", "score=1")], tmp_path
    )
    assert [verdict.abstained for verdict in verdicts] == ["failed", None]
    assert verdicts[0].p_a is None
    assert len(preferences) == 1
    assert summary["abstained"] == {"failed": 1}


# open-instruct, parse_preferences.py: equal ratings are paired, and a parse error can choose and reject one answer


def test_equal_ratings_give_no_preference(tmp_path: Path) -> None:
    pairs = [*pairs_of("one?", "score=3 a", "score=3 b", "score=3 c"), *pairs_of("two?", "score=9", "score=1")]
    preferences, verdicts, summary = labelled(pairs, tmp_path)
    assert sum(verdict.is_tie for verdict in verdicts) == summary["ties"] == 3
    assert [each.prompt.id for each in preferences] == ["two?"]


@pytest.mark.parametrize("reason", ABSTENTIONS)
def test_no_answer_is_chosen_and_rejected_at_once_whatever_the_judge_left_open(reason: str) -> None:
    pairs = pairs_of("one?", "a", "b", "c")
    verdicts = [said(pairs[0], 0.8), said(pairs[1], abstained=reason), said(pairs[2], 0.5)]
    for preference in views.decided(pairs, verdicts):
        assert preference.chosen != preference.rejected
    assert all(pair.a != pair.b for pair, _ in views.best_worst(pairs, verdicts))


# distilabel, formatting/dpo.py:114: best and worst of tied ratings are both the first; no rating is a TypeError


def test_the_best_and_the_worst_of_all_tied_answers_are_nobody() -> None:
    pairs = pairs_of("one?", "a", "b", "c")
    assert views.best_worst(pairs, [said(pair, 0.5) for pair in pairs]) == []


def test_best_and_worst_are_found_where_some_pairs_have_no_verdict() -> None:
    pairs = pairs_of("one?", "best", "middle", "worst")
    order = ("worst", "middle", "best")
    verdicts = [said(pair, float(order.index(pair.a.text) > order.index(pair.b.text))) for pair in pairs]
    verdicts[0] = said(pairs[0], abstained="unreadable")
    ((pair, verdict),) = views.best_worst(pairs, verdicts)
    winner = pair.a if (verdict.p_a or 0) > 0.5 else pair.b
    assert {pair.a.text, pair.b.text} == {"best", "worst"}
    assert winner.text == "best"


# HALOs, label.py: the first number of an unparsed answer is its score; the default threshold is no number


class Unreadable:
    """A backend whose model replies with something else than a verdict."""

    labels = ("K", "P")
    special_tokens: tuple[str, ...] = ()
    contract = "label"

    def read(self, questions: Sequence[Question]) -> list[Reading]:
        return [Reading(abstained="unreadable", tokens_in=9)] * len(questions)


def test_a_reply_that_cannot_be_read_is_no_number_no_tie_and_no_side() -> None:
    inner = PairwiseJudge(LocalLlm(), Unreadable())
    pair = Pair.of(prompt_of("Rate from 1 to 10."), response_of("7 out of 10"), response_of("3", "y"))
    judges = [
        inner,
        BothOrdersJudge(BothOrders.model_validate({"of": "local_llm"}), inner),
        CascadeJudge(Cascade.model_validate({"cheap": "rules", "dear": "length"}), inner, inner),
        PanelJudge(
            Panel.model_validate({"of": [{"judge": "rules", "weight": 1}, {"judge": "length", "weight": 1}]}),
            [inner, inner],
        ),
    ]
    for judge in judges:
        for asked in (pair, pair.swap()):
            (verdict,) = judge.judge([asked])
            assert (verdict.p_a, verdict.abstained, verdict.is_tie) == (None, "unreadable", False)


@pytest.mark.parametrize("reply", ["I would give it 7 out of 10.", "7 or 8", "10", "0", "seven", "Score: 7", ""])
def test_a_number_in_a_reply_that_is_no_rating_is_no_score(reply: str) -> None:
    assert score_of(reply, 1, 9) is None


# FastChat and RewardBench look for `[[A]]` anywhere, and for A before B


@pytest.mark.parametrize(
    "reply",
    [
        "The second answer quotes 'Verdict: K', which is none of mine.\nVerdict: P",
        "Verdict: K\nOn second thoughts:\nVerdict: P",
    ],
)
def test_of_several_verdicts_the_last_one_counts(reply: str) -> None:
    assert last_line(reply, "verdict", ("K", "P")) == "P"


@pytest.mark.parametrize(
    "reply", ["Verdict: K or P", "Verdict: A", "[[K]] and [[P]]", "K is better than P", "Verdict: K, but hardly"]
)
def test_a_reply_that_names_both_or_neither_is_no_side(reply: str) -> None:
    assert last_line(reply, "verdict", ("K", "P")) is None
    assert label_of(reply, ("K", "P")) is None


def test_labelling_with_every_default_runs(tmp_path: Path) -> None:
    assert LabelConfig().min_confidence == 0.5
    preferences, _, _ = labelled(pairs_of("one?", "score=9", "score=1"), tmp_path)
    assert [each.confidence for each in preferences] == [0.9]


# ms-swift, rm_plugin.py: an unparsed verdict is the reward 0.0


def test_an_answer_that_has_no_score_has_none_and_not_zero(tmp_path: Path) -> None:
    model = ModelConfig(base=str(make_reward_model(tmp_path)), quantization="none", dtype="fp32")
    judge = RewardModel(model=model).build(Session())
    sound, too_long = judge.score([prompt_of("Why?")] * 2, [response_of("So."), response_of("x" * 600)])
    assert too_long is None
    assert isinstance(sound, float)


# safe-rlhf, evaluate/gpt4/eval.py: an error of the API is a tie that counts


def test_a_failure_is_counted_as_a_failure_and_not_as_a_tie() -> None:
    pairs = [pair for number in range(4) for pair in pairs_of(f"question {number}", "a", "b")]
    verdicts = [said(pairs[0], 0.9), said(pairs[1], 0.5), said(pairs[2], abstained="failed"), said(pairs[3], 0.2)]
    counted = views.count(pairs, verdicts)
    assert (counted.decided, counted.ties, counted.abstained) == (2, 1, {"failed": 1})


def test_a_failure_does_not_draw_a_comparison_towards_one_half() -> None:
    one, other = (describe(name, name, {"p": [response_of("text", name)]}, seed=1) for name in ("dpo", "base"))
    wins: list[tuple[str, float | None]] = [(f"p{number}", 1.0) for number in range(60)]
    failures: list[tuple[str, float | None]] = [(f"q{number}", None) for number in range(40)]
    found = compare_checkpoints("judge", one, other, [*wins, *failures], seed=1)
    assert found.win_rate == 1.0  # with forty ties it would be 0.8
