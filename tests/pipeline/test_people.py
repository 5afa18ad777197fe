"""From a file of votes to what training reads, through real steps in processes of their own; and people as a judge."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import job_of, prompt_of, response_of

from judges.base import Session, judge_names
from judges.both_orders import Config as BothOrders
from judges.human import Config as Human
from judges.length import Config as Length
from pipeline import compare, plan, recipe, store
from pipeline.agreement import AgreementReport, Rater, agree
from pipeline.errors import RecipeError, StepFailedError
from pipeline.people import Checking, HeldOut, agreement_of, check_finish, check_work
from pipeline.ratings import describe_judge
from pipeline.records import Message, Pair, Preference, Prompt, Response, Thumb, Verdict

PROMPTS = 20


def table(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt", "response_a", "response_b", "rater", "choice"], *rows])
    return path


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    """Three people on each pair, of whom two always like the good answer; on the last prompt all see a tie."""
    rows = []
    for number in range(PROMPTS):
        # The good answer is now the first and now the second.
        sides = [f"Good answer {number}.", f"bad {number}"][:: 1 if number % 2 else -1]
        good = "a" if number % 2 else "b"
        said = ["tie"] * 3 if number == PROMPTS - 1 else [good, good, "b" if good == "a" else "a"]
        rows += [[f"Question {number}?", *sides, who, choice] for who, choice in zip("xyz", said, strict=True)]
    return table(tmp_path / "votes.csv", rows)


def loaded(tmp_path: Path, votes: Path, **annotations: Any) -> recipe.Recipe:
    (tmp_path / "heldout.jsonl").write_text('{"id": "1", "prompt": "Why?"}\n', encoding="utf-8")
    tree = {
        "model": {"base": "smollm2-135m-instruct"},
        "annotations": {"files": str(votes), **annotations},
        "train": {"dpo": {}},
        "compare": {
            "prompts": {"files": str(tmp_path / "heldout.jsonl")},
            "judges": ["rules", "length"],
            "sampler": {"name": "local"},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return recipe.load(path)


def test_votes_become_what_training_reads_and_a_share_is_held_out(tmp_path: Path, votes: Path) -> None:
    run = plan.open_run(loaded(tmp_path, votes, held_out=0.3), tmp_path / "runs" / "it")
    states = {state.step.name: state for state in run.execute(until="label")}
    generated, labelled = states["generate"].path, states["label"].path
    pairs = list(store.read_jsonl(generated / "pairs.jsonl", Pair))
    held_out = list(store.read_jsonl(generated / "held_out.jsonl", HeldOut))
    assert len(pairs) + len(held_out) == PROMPTS and 1 <= len(held_out) <= 12
    prompts = [prompt.id for prompt in store.read_jsonl(generated / "prompts.jsonl", Prompt)]
    assert prompts == [pair.prompt.id for pair in pairs]
    assert not {each.pair.prompt.id for each in held_out} & set(prompts)
    verdicts = list(store.read_jsonl(labelled / "verdicts.jsonl", Verdict))
    assert [verdict.pair_id for verdict in verdicts] == [pair.id for pair in pairs]
    preferences = list(store.read_jsonl(labelled / "preferences.jsonl", Preference))
    ties = sum(verdict.is_tie for verdict in verdicts)
    assert len(preferences) == len(pairs) - ties and ties <= 1
    assert all(each.chosen.text.startswith("Good") and each.confidence < 1 for each in preferences)
    # The same again does nothing.
    assert all(state.done for state in run.states() if state.step.name in ("generate", "label"))


def test_comparing_judges_are_checked_on_the_votes_that_nobody_trains_on(tmp_path: Path, votes: Path) -> None:
    run = plan.open_run(loaded(tmp_path, votes, held_out=0.5), tmp_path / "runs" / "it")
    states = {state.step.name: state for state in run.execute(until="people")}
    report = yaml.safe_load((states["people"].path / "agreement.json").read_text(encoding="utf-8"))
    # The good answer is the longer one everywhere.
    assert report["accuracy"]["length"]["value"] == 1.0
    assert {couple["other"] for couple in report["couples"]} == {"length", "people"}


def test_thumbs_reach_the_label_step_beside_the_preferences(tmp_path: Path) -> None:
    file = tmp_path / "thumbs.jsonl"
    file.write_text('{"prompt": "P?", "completion": "x", "label": true}\n', encoding="utf-8")
    run = plan.open_run(loaded(tmp_path, file, held_out=0), tmp_path / "runs" / "it")
    labelled = next(state for state in run.execute(until="label") if state.step.name == "label").path
    assert [thumb.good for thumb in store.read_jsonl(labelled / "thumbs.jsonl", Thumb)] == [True]


def test_too_many_bad_rows_stop_the_run_before_anything_is_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = table(tmp_path / "votes.csv", [["P?", "x", "y", "ana", "a"], ["P?", "x", "y", "ben", "7"]])
    with pytest.raises(StepFailedError):
        plan.open_run(loaded(tmp_path, bad), tmp_path / "runs" / "it").execute(until="label")
    assert "votes.csv:3: the vote '7' can mean anything" in capfd.readouterr().err


def mistakes(tmp_path: Path, votes: Path, *overrides: str) -> str:
    loaded(tmp_path, votes)
    with pytest.raises(RecipeError) as raised:
        recipe.load(tmp_path / "recipe.yaml", overrides)
    return str(raised.value)


def test_a_recipe_has_pairs_from_people_or_from_the_policy_and_says_what_is_missing(
    tmp_path: Path, votes: Path
) -> None:
    assert "judge: annotations has pairs and their labels; leave one" in mistakes(tmp_path, votes, "judge=length")
    assert "compare.sampler: missing; there is no generate.sampler" in mistakes(tmp_path, votes, "compare.sampler=null")
    assert "annotations.formt: no such option; did you mean 'format'?" in mistakes(
        tmp_path, votes, "annotations.formt=votes"
    )
    assert "annotations.format: no format is called 'argila'; there are: anthropic_hh" in mistakes(
        tmp_path, votes, "annotations.format=argila"
    )
    assert "annotations.prompt_split: '(' found; needs to be a regular expression" in mistakes(
        tmp_path, votes, "annotations.prompt_split='('"
    )
    assert "annotations.columns.rater: 'rater' found; needs to be 'prompt', 'a', 'b', 'vote'," in mistakes(
        tmp_path, votes, "annotations.columns={rater: who}"
    )
    assert "annotations.choices.1: 'c' found" in mistakes(tmp_path, votes, "annotations.choices={'1': c}")
    found = loaded(tmp_path, votes)
    votes.unlink()
    with pytest.raises(RecipeError, match=r"annotations\.files: there is no file .*votes\.csv"):
        recipe.check_files(found)


# ---- people as a judge


def pair(one: str, other: str, prompt: str = "Question 1?", system: str = "") -> Pair:
    messages = [Message(role="system", content=system)] if system else []
    asked = Prompt(id="from elsewhere", messages=(*messages, Message(role="user", content=prompt)))
    return Pair.of(asked, Response(text=one, source="base", index=0), Response(text=other, source="base", index=1))


GOOD = pair("Good answer 1.", "bad 1", system="Be brief.")


def ask(config: Human, pairs: list[Pair]) -> list[Verdict]:
    return config.build(Session()).judge(pairs)


def test_votes_are_found_by_text_whichever_run_the_pair_is_from(votes: Path) -> None:
    human = Human(votes={"files": votes, "aggregate": "majority"})  # type: ignore[arg-type]
    straight, swapped, tie, unknown = ask(
        human,
        [GOOD, GOOD.swap(), pair("Good answer 19.", "bad 19", "Question 19?"), pair("new", "other")],
    )
    good = straight.p_a if GOOD.a.text.startswith("Good") else swapped.p_a
    assert good == pytest.approx(3 / 5)
    assert straight.p_a is not None and swapped.p_a == pytest.approx(1 - straight.p_a)
    assert tie.is_tie
    assert unknown.abstained == "no_vote"


def test_votes_on_one_pair_count_together_whichever_system_message_or_source_they_came_with(tmp_path: Path) -> None:
    header = ["prompt", "response_a", "response_b", "rater", "choice", "system", "source_b"]
    said = [
        ["ana", "a", "", "dpo"],
        ["ben", "b", "", "kto"],
        ["cy", "b", "Be brief.", "dpo"],
        ["ana", "b", "Be brief.", "kto"],
        ["", "b", "", "dpo"],
        ["", "b", "Be brief.", "dpo"],
    ]
    path = tmp_path / "votes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *(["P?", "one", "two", *row] for row in said)])
    (verdict,) = ask(Human(votes={"files": path, "aggregate": "majority"}), [pair("one", "two", "P?")])  # type: ignore[arg-type]
    # Ana changed her mind, so that all five are for `two`: (5 + 1) / (5 + 2).
    two_is_a = pair("one", "two", "P?").a.text == "two"
    assert verdict.p_a == pytest.approx(6 / 7 if two_is_a else 1 / 7)


def test_of_two_votes_of_one_person_the_later_time_counts_though_it_is_the_smaller_text(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        # Under two system messages, so that the judge alone puts them together.
        csv.writer(file).writerows(
            [
                ["prompt", "response_a", "response_b", "rater", "choice", "system", "at"],
                ["P?", "one", "two", "ana", "a", "", "2024-01-02 10:05"],
                ["P?", "one", "two", "ana", "b", "Be brief.", "2024-01-02 9:05"],
            ]
        )
    asked = pair("one", "two", "P?")
    (verdict,) = ask(Human(votes={"files": path}), [asked])  # type: ignore[arg-type]
    assert verdict.p_a is not None and (verdict.p_a > 0.5) == (asked.a.text == "one")


def test_another_judge_answers_where_nobody_voted_and_their_agreement_is_told(votes: Path) -> None:
    human = Human(votes={"files": votes}, otherwise="length")  # type: ignore[arg-type]
    unknown = pair("a much longer answer", "short")
    tie = pair("Good answer 19.", "bad 19", "Question 19?")
    verdicts = ask(human, [GOOD, tie, unknown])
    assert verdicts[1].is_tie  # people's tie is not put to the judge
    assert verdicts[2].p_a == (1.0 if unknown.a.text.startswith("a much") else 0.0)
    assert human.summary(verdicts) == {"people_rate": 2 / 3, "agreement_rate": 1 / 2}


def test_on_two_equal_texts_there_is_no_vote_and_another_judge_has_its_tie(tmp_path: Path) -> None:
    same = ["Question 0?", "the same", "the same", "x", "a"]  # as the page once exported them
    file = table(tmp_path / "votes.csv", [same, ["Question 1?", "Good answer 1.", "bad 1", "x", "a"]])
    pairs = [GOOD, pair("the same", "the same", "Question 0?")]
    good, equal = ask(Human(votes={"files": file}), pairs)  # type: ignore[arg-type]
    assert good.p_a is not None and equal.abstained == "no_vote"
    _, equal = ask(Human(votes={"files": file}, otherwise="length"), pairs)  # type: ignore[arg-type]
    assert equal.is_tie and equal.evidence["decided_by"] == "length"


def test_its_fingerprint_is_that_of_the_votes_and_not_of_their_place(tmp_path: Path, votes: Path) -> None:
    def fingerprint(path: Path) -> str:
        return Human(votes={"files": path}).fingerprint()  # type: ignore[arg-type]

    copy = tmp_path / "copy.csv"
    copy.write_bytes(votes.read_bytes())
    assert fingerprint(copy) == fingerprint(votes)
    copy.write_bytes(votes.read_bytes().replace(b",z,tie", b",z,a"))
    assert fingerprint(copy) != fingerprint(votes)
    copy.unlink()
    assert list(Human(votes={"files": copy}).lacks()) == [f"votes.files: there is no file {copy}"]  # type: ignore[arg-type]


# ---- the report


def test_a_judge_that_agrees_with_people_no_better_than_chance_is_warned_of() -> None:
    people = {f"p{n}": "a" if n % 2 else "b" for n in range(40)}
    raters = [
        Rater(name="coin", p={name: float(n % 4 < 2) for n, name in enumerate(people)}, asked=40),
        Rater(name="good", p={name: float(label == "a") for name, label in people.items()}, asked=40),
    ]
    (warning,) = compare._against_people(agree(raters, {name: name for name in people}, people))
    assert warning.startswith("coin is right in 50.0") and "not better than chance" in warning


def test_what_is_known_of_a_judge_is_known_by_its_fingerprint_and_not_by_a_name_that_another_has(
    tmp_path: Path,
) -> None:
    # People like the longer of two answers on every prompt.
    longer, shorter = (BothOrders(of=Length(prefer=which)) for which in ("longer", "shorter"))
    pairs = [Pair.of(prompt_of(f"q{n}"), response_of("long answer"), response_of("short", index=1)) for n in range(30)]
    known = [HeldOut(pair=each, p_a=float(each.a.text == "long answer")) for each in pairs]
    store.make_dirs(tmp_path / "generate")
    store.write_jsonl(tmp_path / "generate" / "held_out.jsonl", known)
    job = job_of(tmp_path, Checking(seed=1, judges=(longer,)), inputs={"generate": tmp_path / "generate"})
    check_work(job)
    check_finish(job)

    def told(*judges: BothOrders) -> AgreementReport | None:
        described = [
            describe_judge(name, judge.fingerprint(), how=None, pairs=(), verdicts=())
            for judge, name in zip(judges, judge_names(judges), strict=True)
        ]
        return agreement_of(replace(job, inputs={"people": job.out}), described)

    same, another, both = told(longer), told(shorter), told(shorter, longer)
    assert same is not None and another is not None and both is not None
    assert [*same.trust] == ["both_orders"]
    assert same.trust["both_orders"].value == pytest.approx(1 / (1 + math.exp(-8)))  # the most that one call can say
    assert [(couple.one, couple.other) for couple in same.couples] == [("both_orders", "people")]
    assert (another.trust, another.accuracy, another.couples) == ({}, {}, ())
    assert list(compare._against_people(another)) == []
    # Under the name that it has there.
    assert (both.trust, both.accuracy) == (
        {"both_orders 2": same.trust["both_orders"]},
        {"both_orders 2": same.accuracy["both_orders"]},
    )
    assert [(couple.one, couple.other) for couple in both.couples] == [("both_orders 2", "people")]
