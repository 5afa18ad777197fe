"""Stage 4 asks who answered better, from whichever side, and says it of the right checkpoint."""

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from scripted.judge import Config as Scripted
from tiny import job_of, preference_of, prompt_of, response_of, said

from judges.base import judge_names
from judges.length import Config as Length
from pipeline import compare, store
from pipeline.algorithms.held_out import examine
from pipeline.compare import Comparing
from pipeline.generate import Answer
from pipeline.measure import Reading, Score
from pipeline.ratings import Comparison, Results, schema
from pipeline.records import Pair, Verdict

# ---- rows


def both_ways() -> tuple[Pair, Pair]:
    """A pair with dpo's answer on side a, and one with it on side b: the hash decides, so some text gives each."""
    pairs = [Pair.of(prompt_of(f"q{n}"), response_of("yes", "dpo"), response_of("no", "base")) for n in range(30)]
    return next(p for p in pairs if p.a.source == "dpo"), next(p for p in pairs if p.b.source == "dpo")


@pytest.mark.parametrize(("p_a", "left", "right"), [(0.75, 0.75, 0.25), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5), (None,) * 3])
def test_a_row_is_the_probability_that_the_first_named_is_better_on_either_side(
    p_a: float | None, left: float | None, right: float | None
) -> None:
    pairs = both_ways()
    verdicts = {pair.id: said(pair, p_a, None if p_a is not None else "failed") for pair in pairs}
    rows = [(pairs[0].prompt.id, left), (pairs[1].prompt.id, right)]
    assert list(compare._rows(pairs, verdicts, "dpo", "base")) == rows
    assert list(compare._rows(pairs, verdicts, "base", "dpo")) == [
        (name, None if p is None else 1 - p) for name, p in rows
    ]


def test_matches_of_others_are_in_no_row() -> None:
    pairs = both_ways()
    assert list(compare._rows(pairs, {pair.id: said(pair, 1.0) for pair in pairs}, "kto", "base")) == []


@pytest.mark.parametrize(
    ("judges", "names"),
    [
        ([Length()], ["length"]),
        ([Length(), Scripted()], ["length", "scripted.judge"]),
        ([Length(), Scripted(), Length(prefer="shorter")], ["length 1", "scripted.judge", "length 2"]),
    ],
)
def test_judges_of_one_name_are_numbered(judges: Any, names: list[str]) -> None:
    assert judge_names(judges) == names


# ---- the step


def answer(prompt: str, source: str, text: str, index: int = 0) -> Answer:
    response = response_of(text, source, index).model_copy(update={"n_tokens": len(text)})
    return Answer(prompt_id=prompt, response=response)


def run(
    top: Path, config: Comparing, answers: list[Answer], world: int = 1, measures: Path | None = None
) -> dict[str, bytes]:
    """The bytes of every file that the step leaves, done by `world` processes."""
    store.make_dirs(top / "answers")
    names = dict.fromkeys(each.prompt_id for each in answers)
    store.write_jsonl(top / "answers" / "prompts.jsonl", [prompt_of(name) for name in names])
    store.write_jsonl(top / "answers" / "answers.jsonl", answers)
    inputs = {"answers": top / "answers", **({"measure": measures} if measures else {})}
    for rank in range(world):
        compare.compare_work(job_of(top, config, inputs=inputs, rank=rank, world=world))
    job = job_of(top, config, inputs=inputs)
    compare.compare_finish(job)
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


def comparing(*judges: Any, names: tuple[str, ...] = ("base", "dpo")) -> Comparing:
    return Comparing(
        seed=1,
        judges=judges,
        labelled={Length().fingerprint(): "labelled"},
        labelled_by="length",
        confidence=0.95,
        checkpoints=tuple((name, name) for name in names),
    )


def results_of(files: dict[str, bytes]) -> Results:
    return Results.model_validate_json(files["results.json"])


def only(results: Results, one: str, other: str, judge: str) -> Comparison:
    (found,) = [each for each in results.between(one, other) if each.judge == judge]
    return found


def chatty(prompts: int = 12, samples: int = 2) -> list[Answer]:
    """dpo always gives the longer answer."""
    return [
        answer(f"q{number}", source, f"{word} {number} {index}", index)
        for number in range(prompts)
        for source, word in (("base", "short"), ("dpo", "much longer"))
        for index in range(samples)
    ]


def test_results_json_is_what_its_schema_says_and_the_schema_would_notice(tmp_path: Path) -> None:
    Draft202012Validator.check_schema(schema())
    validator = Draft202012Validator(schema())
    answers = [*chatty(), answer("q0", "base", "open=refused", 2), answer("q0", "dpo", "open=refused", 2)]
    told = json.loads(run(tmp_path, comparing(Length(), Scripted()), answers)["results.json"])
    assert [error.message for error in validator.iter_errors(told)] == []
    del told["comparisons"][0]["win_rate"]
    told["prompts"] = "twelve"
    found = sorted((list(error.absolute_path), error.validator) for error in validator.iter_errors(told))
    assert found == [(["comparisons", 0], "required"), (["prompts"], "type")]


def test_who_always_gives_the_longer_answer_always_wins_by_length(tmp_path: Path) -> None:
    files = run(tmp_path, comparing(Length()), chatty())
    found = results_of(files)
    won = only(found, "dpo", "base", "length")
    assert (won.win_rate, won.high, won.n, won.n_clusters, won.ties) == (1.0, 1.0, 24, 12, 0)
    # Wilson's lower end for 12 of 12: n / (n + z^2).
    assert won.low == pytest.approx(12 / (12 + 1.959964**2), abs=1e-6)
    assert won.decisive
    assert only(found, "base", "dpo", "length").win_rate == 0.0
    assert found.prompts == 12
    assert [each.name for each in found.checkpoints] == ["base", "dpo"]
    assert [each.n_answers for each in found.checkpoints] == [24, 24]
    summary = json.loads(files["summary.json"])
    assert summary == {"headline": found.headline, "pairs": 24}
    assert "dpo" in found.headline


def test_the_same_judge_the_other_way_round_turns_the_result_round(tmp_path: Path) -> None:
    found = results_of(run(tmp_path, comparing(Length(prefer="shorter"), Length()), chatty()))
    assert only(found, "dpo", "base", "length 1").win_rate == 0.0
    assert only(found, "dpo", "base", "length 2").win_rate == 1.0
    # The first is another judge than the one that labelled, though it has its name.
    assert [judge.labelled for judge in found.judges] == [False, True]


def test_samples_are_matched_by_their_number_and_equal_texts_are_ties(tmp_path: Path) -> None:
    answers = [
        answer("q0", "base", "aa", 0),
        answer("q0", "base", "bbbb", 1),
        answer("q0", "dpo", "aa", 0),
        answer("q0", "dpo", "b", 1),
        answer("q1", "base", "a"),
        answer("q1", "dpo", "aaa"),
    ]
    files = run(tmp_path, comparing(Length()), answers)
    # A tie, a loss and a win: one half.
    won = only(results_of(files), "dpo", "base", "length")
    assert (won.n, won.ties, won.win_rate) == (3, 1, 0.5)
    pairs = [Pair.model_validate_json(line) for line in files["pairs.jsonl"].splitlines()]
    assert sorted((pair.prompt.id, pair.a.index, pair.b.index) for pair in pairs) == [
        ("q0", 0, 0),
        ("q0", 1, 1),
        ("q1", 0, 0),
    ]


def test_every_two_checkpoints_are_compared_by_every_judge(tmp_path: Path) -> None:
    answers = [*chatty(5, 1), *(answer(f"q{number}", "kto", "medium-sized") for number in range(5))]
    files = run(tmp_path, comparing(Length(), Scripted(), names=("base", "dpo", "kto")), answers)
    found = results_of(files)
    assert {(each.one, each.other, each.judge) for each in found.comparisons} == {
        (one, other, judge)
        for one, other in (("dpo", "base"), ("kto", "base"), ("kto", "dpo"))
        for judge in ("length", "scripted.judge")
    }
    verdicts = [Verdict.model_validate_json(line) for line in files["verdicts.jsonl"].splitlines()]
    assert len(verdicts) == 2 * 3 * 5
    # "medium-sized" is longer than "short 0 0" and as long as no "much longer 0 0".
    assert only(found, "kto", "base", "length").win_rate == 1.0
    assert only(found, "kto", "dpo", "length").win_rate == 0.0
    # By length each beats all below it, so no finite strengths say so; to the other judge all are equal.
    (scale,) = found.strengths
    assert (scale.judge, scale.anchor, scale.n, scale.n_clusters) == ("scripted.judge", "base", 15, 5)
    assert [(one.name, round(one.value, 9)) for one in scale.strengths] == [("base", 0), ("dpo", 0), ("kto", 0)]
    assert only(found, "kto", "dpo", "scripted.judge").ties == 5


def test_judges_see_no_names_and_are_asked_once_about_the_same_two_texts(tmp_path: Path) -> None:
    words = {"base": "a", "dpo": "score=2", "kto": "score=2"}
    answers = [answer(f"q{number}", name, words[name]) for number in range(6) for name in words]
    files = run(tmp_path, comparing(Scripted(), names=("base", "dpo", "kto")), answers)
    journal = sqlite3.connect(tmp_path / "cache" / "journal.sqlite")
    # dpo and kto say the same, so their matches with the base are one question, and their own is another.
    assert journal.execute("SELECT count(*) FROM entries WHERE kind = 'verdict'").fetchone() == (2 * 6,)
    journal.close()
    found = results_of(files)
    won = [only(found, one, "base", "scripted.judge").win_rate for one in ("dpo", "kto")]
    assert won[0] == won[1] > 0.5
    assert only(found, "kto", "dpo", "scripted.judge").ties == 6
    # Under other names nobody is asked again.
    names = {"base": "base", "kto": "run/kto"}
    renamed = [answer(a.prompt_id, names[a.response.source], a.response.text) for a in answers
               if a.response.source in names]  # fmt: skip
    Scripted.ASKED.clear()
    again = results_of(run(tmp_path, comparing(Scripted(), names=("run/kto", "base")), renamed))
    assert Scripted.ASKED == []
    assert only(again, "run/kto", "base", "scripted.judge").win_rate == pytest.approx(won[1])
    assert [each.name for each in again.checkpoints] == ["run/kto", "base"]


@pytest.mark.parametrize("world", [2, 5])
def test_any_number_of_processes_leaves_the_same_bytes(world: int, tmp_path: Path) -> None:
    config = comparing(Length(), Scripted())
    alone = run(tmp_path / "alone", config, chatty())
    assert run(tmp_path / "shared", config, chatty(), world) == alone


def test_abstentions_are_in_no_rate(tmp_path: Path) -> None:
    answers = [*chatty(4, 1), answer("q9", "base", "open=refused"), answer("q9", "dpo", "score=3")]
    found = only(results_of(run(tmp_path, comparing(Scripted()), answers)), "dpo", "base", "scripted.judge")
    assert (found.n, found.abstained, found.ties, found.win_rate) == (4, 1, 4, 0.5)


def test_reward_scores_and_perplexity_are_those_of_the_measure_step_with_the_base_as_the_unit(tmp_path: Path) -> None:
    answers = [answer(f"q{n}", source, f"{source} {n}") for n in range(4) for source in ("base", "dpo")]
    raw = {"base": [1.0, 2.0, 3.0, 4.0], "dpo": [3.0, 4.0, 5.0, 6.0]}
    top = tmp_path / "measure"
    store.make_dirs(top)
    scores = [
        Score(prompt_id=f"q{n}", source=name, index=0, model="rm", score=raw[name][n]) for n in range(4) for name in raw
    ]
    store.write_jsonl(top / "scores.jsonl", scores)
    rows = [("base", 2.0, 2), ("base", 4.0, 1), ("base", 0.0, 0), ("dpo", 3.0, 2), ("dpo", 0.0, 1)]
    readings = [Reading(where=f"t:{n}", source=name, nll=nll, tokens=t) for n, (name, nll, t) in enumerate(rows)]
    store.write_jsonl(top / "perplexity.jsonl", readings)
    base, dpo = results_of(run(tmp_path, comparing(Length()), answers, measures=top)).checkpoints
    # The base's mean is 2.5 and its deviation sqrt(5 / 3).
    assert base.rewards[0].score.value == pytest.approx(0)
    assert dpo.rewards[0].score.value == pytest.approx(2 / math.sqrt(5 / 3))
    assert (dpo.rewards[0].model, dpo.rewards[0].score.n_clusters) == ("rm", 4)
    assert base.perplexity is not None and dpo.perplexity is not None
    assert (base.perplexity.value, base.perplexity.n) == (pytest.approx(math.exp(6 / 3)), 3)
    assert dpo.perplexity.value == pytest.approx(math.e)


# ---- what the report warns of


def test_every_judge_that_policies_were_trained_to_please_is_warned_of_for_what_it_did(tmp_path: Path) -> None:
    scripted, long = Scripted(), Length()
    config = comparing(long, scripted).model_copy(
        update={"labelled": {long.fingerprint(): "labelled in part", scripted.fingerprint(): "rewarded"}}
    )
    told = list(compare._warnings(results_of(run(tmp_path, config, chatty(3))), unexamined=[]))
    less = "and also compares: trust it less than a judge that did not."
    assert told[:3] == [
        f"length had a part in labelling the training data {less}",
        f"scripted.judge rewarded policies in training {less}",
        "Every comparing judge had a part in labelling the training data or rewarded policies in training: the policy "
        "is graded by what it was trained on.",
    ]


# ---- what the report is told of training


def test_a_reward_model_no_better_than_chance_and_every_alarm_of_training_are_told(tmp_path: Path) -> None:
    trained = {name: tmp_path / name for name in ("weak", "strong", "ppo", "dpo")}
    for folder in trained.values():
        store.make_dirs(folder)
        store.write_json(folder / "summary.json", {})
    exam = examine([preference_of(prompt_of(str(n)), response_of("a"), response_of("b")) for n in range(9)],
                   [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 4, [(1, 2)] * 9, seed=1).model_dump(mode="json")  # fmt: skip
    for name, low in (("weak", 0.5), ("strong", 0.51)):
        store.write_json(trained[name] / "reward_model.json", {"held_out": {**exam, "low": low, "high": 0.8}})
    store.write_json(trained["ppo"] / "summary.json", {"alarms": ["the entropy fell to 0.1 nats"]})
    told = list(compare._training_alarms(trained, dict(compare._held_out(trained))))
    assert told == [
        "weak orders 55.6 % [50.0, 80.0] of its held-out pairs as the judge did, which is not better than chance: "
        "a policy that was trained against it learned its noise.",
        "ppo: the entropy fell to 0.1 nats",
    ]


def test_a_curve_is_made_of_the_numbers_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step":1,"kl":0.5,"alarms":["x"],"note":"y","reward":null}\n')
    assert compare._curve(tmp_path) == [{"step": 1, "kl": 0.5, "reward": None}]
