"""Length control and the corrections by people read what a run has asked, from the right files and the right side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import job_of, prompt_of, response_of

from judges.length import Config as Length
from pipeline import adjustments, store
from pipeline.agreement import AgreementReport
from pipeline.compare import Reporting
from pipeline.ratings import Checkpoint, JudgeInfo, Results, compare_checkpoints
from pipeline.records import Pair, Verdict
from pipeline.statistics.win_rate import Estimate

LABELLING, OTHER, HUMAN = "labelling", "other", "human"
PROMPTS = 120


def checkpoint(name: str) -> Checkpoint:
    return Checkpoint(
        name=name, algorithm=name, n_answers=1, tokens_mean=None, words_mean=1, finished_share=None, distinct_2=0,
        repetition=0, kl=None,
    )  # fmt: skip


def judge(name: str) -> JudgeInfo:
    return JudgeInfo(
        name=name, fingerprint=f"f-{name}", labelled=name == LABELLING, asked=1, ties=0, abstained={},
        prefers_longer=None, position_a=None,
    )  # fmt: skip


def verdict(pair: Pair, by: str, p_a: float | None, **evidence: Any) -> Verdict:
    reason = None if p_a is not None else "no_vote"
    return Verdict(
        pair_id=pair.id, judge=by, fingerprint=f"f-{by}", p_a=p_a, abstained=reason, evidence=evidence
    )  # fmt: skip


def of_one(pair: Pair, p_one: float) -> float:
    """P(a is better), given that of dpo's answer."""
    return p_one if pair.a.source == "dpo" else 1 - p_one


Fixture = tuple[Any, Results, list[Pair]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Fixture]:
    """A run whose judges prefer dpo's answer in 70 % of pairs, and the longer of two answers of the policy in 80 %."""

    def made(people: dict[int, float] | None = None) -> Fixture:
        random = np.random.default_rng(1)
        lengths = random.integers(10, 60, size=(PROMPTS, 2))
        own, pairs = [], []
        for number, (x, y) in enumerate(lengths.tolist()):
            prompt = prompt_of(f"q{number}")
            own.append(Pair.of(prompt, response_of("x" * x), response_of("y" * (y + 60), index=1)))
            pairs.append(Pair.of(prompt, response_of("x" * x, "dpo"), response_of("y" * y)))
        labels = [
            verdict(pair, LABELLING, 0.5, p_raw=float((len(pair.a.text) > len(pair.b.text)) == (number % 5 > 0)))
            for number, pair in enumerate(own)
        ]
        said = [
            verdict(pair, by, of_one(pair, float(n % 10 < 7)))
            for by in (LABELLING, OTHER)
            for n, pair in enumerate(pairs)
        ]
        for number, pair in enumerate(pairs):
            p = None if people is None else people.get(number)
            told = {} if p is None else {"decided_by": "people", "people": {"p_a": of_one(pair, p)}}
            said.append(verdict(pair, HUMAN, None if p is None else of_one(pair, p), **told))
        names = ("generate", "label", "compare")
        inputs = {name: tmp_path / name for name in names}
        for path in inputs.values():
            store.make_dirs(path)
        store.write_jsonl(inputs["generate"] / "pairs.jsonl", own)
        store.write_jsonl(inputs["label"] / "verdicts.jsonl", labels)
        store.write_json(inputs["label"] / "summary.json", {"judge_fingerprint": f"f-{LABELLING}"})
        store.write_jsonl(inputs["compare"] / "pairs.jsonl", pairs)
        store.write_jsonl(inputs["compare"] / "verdicts.jsonl", said)
        rows = [(pair.prompt.id, float(number % 10 < 7)) for number, pair in enumerate(pairs)]
        results = Results.of(
            checkpoints=[checkpoint("base"), checkpoint("dpo")],
            judges=[judge(name) for name in (LABELLING, OTHER, HUMAN)],
            comparisons=[
                compare_checkpoints(by, checkpoint("dpo"), checkpoint("base"), rows) for by in (LABELLING, OTHER)
            ],
            prompts=PROMPTS,
        )
        job = job_of(tmp_path, Reporting(title="", recipe_yaml="", steps=()), inputs=inputs)
        return job, results, pairs

    return made


def test_the_labelling_judge_has_a_coefficient_from_its_labels_and_the_others_none(run: Callable[..., Fixture]) -> None:
    job, results, _ = run()
    found = adjustments.adjusted(job, results, None, None)
    phi, none, _ = found.length_coefficients
    # The raw probabilities are read: the calibrated ones are all one half. Longer wins in 80 %, at any difference.
    assert phi.value is not None and phi.value > 1
    assert (phi.n, phi.n_clusters) == (PROMPTS, PROMPTS)
    assert none.not_identified == "it was not asked about two answers by one policy"
    by_labelling, by_other = found.length_controlled
    assert by_labelling.win_rate == pytest.approx(0.7, abs=0.05)
    assert (by_other.win_rate, by_other.not_identified) == (None, none.not_identified)
    assert found.corrected == ()
    # What the compare step found stays as it was.
    assert found.comparisons == results.comparisons


def test_longer_answers_cost_a_checkpoint_what_its_judge_gives_to_length(run: Callable[..., Fixture]) -> None:
    job, results, pairs = run()
    longer = [
        pair.model_copy(
            update={side: getattr(pair, side).model_copy(update={"text": getattr(pair, side).text + "x" * 8})}
        )
        for pair in pairs
        for side in ("a", "b")
        if getattr(pair, side).source == "dpo"
    ]
    before = adjustments.adjusted(job, results, None, None).length_controlled[0].win_rate
    store.write_jsonl(job.inputs["compare"] / "pairs.jsonl", longer)
    after = adjustments.adjusted(job, results, None, None).length_controlled[0].win_rate
    assert before is not None and after is not None
    assert after < before - 0.05


def test_votes_on_the_compared_pairs_correct_every_judge(run: Callable[..., Fixture]) -> None:
    # People find dpo better in 40 % of the pairs, one in three of which they were shown; one vote alone is 2/3.
    people = {number: 2 / 3 if number % 10 < 4 else 1 / 3 for number in range(0, PROMPTS, 3)}
    job, results, _ = run(people)
    found = adjustments.adjusted(job, results, None, trusted(OTHER)).corrected
    assert [(each.judge, each.method, each.labels) for each in found] == [
        (LABELLING, "prediction-powered", 40),
        (OTHER, "prediction-powered", 40),
    ]
    # Every residue of 10 is there four times, so the judges' mean is 0.7 there as it is over all: nothing to correct.
    for each in found:
        assert each.win_rate == pytest.approx(0.4)
        assert each.low is not None and each.high is not None
        assert each.low < 0.4 < each.high < 0.6


def trusted(*names: str) -> AgreementReport:
    a = Estimate(value=0.9, low=0.8, high=1, standard_error=0.02, n=80, n_clusters=70)
    return AgreementReport(couples=(), alpha=None, accuracy={}, trust=dict.fromkeys(names, a))


def test_without_votes_on_them_what_is_known_of_a_judge_elsewhere_corrects_it(run: Callable[..., Fixture]) -> None:
    job, results, _ = run()
    (found,) = adjustments.adjusted(job, results, None, trusted(OTHER)).corrected
    assert (found.judge, found.method, found.labels) == (OTHER, "Rogan-Gladen", 80)
    # (0.7 - 0.1) / 0.8
    assert (found.win_rate, found.reliance) == (pytest.approx(0.75), pytest.approx(0.8))


def test_votes_say_who_they_prefer_and_not_how_surely() -> None:
    pair = Pair.of(prompt_of("q"), response_of("x", "dpo"), response_of("y"))
    sure = Length().name
    said = [verdict(pair, HUMAN, p, decided_by="people", people={"p_a": p}) for p in (0.6, 0.5, 0.01)]
    assert [list(adjustments.voted([each]).values()) for each in said] == [[1.0], [0.5], [0.0]]
    assert adjustments.voted([verdict(pair, HUMAN, 0.9, decided_by=sure, otherwise={"p_a": 0.9})]) == {}
