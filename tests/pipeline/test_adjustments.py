"""Length control and the corrections by people read what a run has asked, from the right files and the right side."""

import csv
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import job_of, prompt_of, response_of

from judges import human
from judges.length import Config as Length
from pipeline import adjustments, store
from pipeline.agreement import AgreementReport
from pipeline.annotate import material
from pipeline.compare import Reporting
from pipeline.importers.base import Source
from pipeline.ratings import Checkpoint, JudgeInfo, Results, compare_checkpoints
from pipeline.records import Pair, Verdict
from pipeline.statistics.judge_error import Corrected
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

    def made(people: dict[int, float] | None = None, same: Collection[int] = ()) -> Fixture:
        random = np.random.default_rng(1)
        lengths = random.integers(10, 60, size=(PROMPTS, 2))
        own, pairs = [], []
        for number, (x, y) in enumerate(lengths.tolist()):
            prompt = prompt_of(f"q{number}")
            own.append(Pair.of(prompt, response_of("x" * x), response_of("y" * (y + 60), index=1)))
            other = "x" * x if number in same else "y" * y
            pairs.append(Pair.of(prompt, response_of("x" * x, "dpo"), response_of(other)))
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


def test_votes_correct_a_judge_on_answers_that_differ_and_equal_ones_are_a_tie(run: Callable[..., Fixture]) -> None:
    # People find dpo better in 13 of 15 of the 90 pairs that they were shown; the judges see winners in the others too.
    same = range(0, PROMPTS, 4)
    people = {number: 2 / 3 if number % 10 < 9 else 1 / 3 for number in range(PROMPTS) if number not in same}
    job, results, _ = run(people, same)
    for each in adjustments.adjusted(job, results, None, None).corrected:
        assert (each.labels, each.win_rate) == (90, pytest.approx(0.75 * 13 / 15 + 0.25 * 0.5))
        assert each.low is not None and each.high is not None
        assert 0.65 < each.low < 0.775 < each.high < 13 / 15


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


# ---- votes from our own page

TRUTH = 0.65
"""The mean of 90 and 40 %."""


def corrected_by_page(tmp_path: Path, seed: int, *, control: float, votes: int, column: bool = True) -> Corrected:
    """What is made of the first votes on the page, which has 300 pairs.

    The judge is sure in half of them, of either side, where people prefer dpo in 90 %; in the others in 40 %.
    """
    random = np.random.default_rng(seed)
    pairs = [Pair.of(prompt_of(f"q{n}"), response_of(f"x{n}", "dpo"), response_of(f"y{n}")) for n in range(300)]
    p = dict(zip((pair.id for pair in pairs), random.uniform(size=300).tolist(), strict=True))
    asked = material.order(p, {name: abs(each - 0.5) for name, each in p.items()}, control=control, seed=seed)
    by_id = {pair.id: pair for pair in pairs}
    likes = {name: 0.9 if abs(each - 0.5) > 0.25 else 0.4 for name, each in p.items()}
    rows = []
    for name, sample in list(asked)[:votes]:
        pair, likes_dpo = by_id[name], random.uniform() < likes[name]
        rows.append({
            "prompt": pair.prompt.text, "response_a": pair.a.text, "response_b": pair.b.text, "rater": "ann",
            "choice": "a" if (pair.a.source == "dpo") == likes_dpo else "b", "sample": sample,
        })  # fmt: skip
    with open(tmp_path / f"{seed}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if column or name != "sample"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    people = human.HumanJudge(human.Config(votes=Source(files=(tmp_path / f"{seed}.csv",))), None).judge(pairs)
    said = [verdict(pair, OTHER, of_one(pair, p[pair.id])) for pair in pairs]
    inputs = {"compare": tmp_path / f"compare{seed}"}
    store.make_dirs(inputs["compare"])
    store.write_jsonl(inputs["compare"] / "pairs.jsonl", pairs)
    store.write_jsonl(inputs["compare"] / "verdicts.jsonl", [*said, *people])
    job = job_of(tmp_path, Reporting(title="", recipe_yaml="", steps=()), inputs=inputs)
    (found,) = adjustments.adjusted(job, one_comparison(), None, trusted(OTHER)).corrected
    return found


@functools.cache
def one_comparison() -> Results:
    """Of dpo with base by one judge; its own numbers are in nothing that people correct pair by pair."""
    both = checkpoint("dpo"), checkpoint("base")
    comparison = compare_checkpoints(OTHER, *both, [("q0", 0.6), ("q1", 0.7)])
    return Results.of(checkpoints=both, judges=[judge(OTHER)], comparisons=[comparison], prompts=2)


def misses(found: list[Corrected]) -> tuple[float, float]:
    """The mean distance to the truth, and the share of the intervals that hold it."""
    rates = [each.win_rate - TRUTH for each in found if each.win_rate is not None]
    held = [each.low < TRUTH < each.high for each in found if each.low is not None and each.high is not None]
    assert len(rates) == len(held) == len(found)
    return float(np.mean(rates)), float(np.mean(held))


def test_votes_of_our_own_page_correct_a_judge_without_the_bias_of_asking_the_least_sure_first(tmp_path: Path) -> None:
    # 80 votes of 300; without the column nobody can know that 56 of them were chosen for being doubtful.
    blind = [corrected_by_page(tmp_path, seed, control=0.3, votes=80, column=False) for seed in range(40)]
    found = [corrected_by_page(tmp_path, seed, control=0.3, votes=80) for seed in range(40)]
    assert all(each.labels == 80 for each in blind) and all(each.labels == 24 for each in found)
    bias, held = misses(blind)
    # The 24 say 0.65 and the 56 say 0.4: 0.175 too little.
    assert bias == pytest.approx(-0.175, abs=0.03) and held < 0.2
    # A rate of 24 votes deviates by 0.1, so the mean of 40 of them by 0.016.
    bias, held = misses(found)
    assert abs(bias) < 0.04 and held > 0.85


def test_too_few_pairs_drawn_at_random_identify_nothing_and_it_says_what_the_others_were(
    tmp_path: Path,
) -> None:
    found = corrected_by_page(tmp_path, 0, control=0.1, votes=60)
    assert (found.win_rate, found.labels) == (None, 6)
    assert found.not_identified == (
        "people labelled answers to 6 of these prompts, and 20 are needed; 54 votes on pairs of which a judge was "
        "least sure do not count, because they stand for no other pair: draw more at random "
        "(prefloop annotate --control)"
    )
