"""The exam finds what was planted in a judge, and fails each faulty judge by the name of its fault."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from scripted.planted import Config as Planted
from tiny import prompt_of, response_of, said

from judges.base import JudgeConfig, Session, logit, sigmoid
from judges.both_orders import Config as BothOrders
from judges.exam import ALTERED, NULL_ANSWER, Floors, GoldPair, Question, questions
from judges.grading import Check, ExamReport, grade
from judges.length import Config as Length
from pipeline import store
from pipeline.records import Pair, Prompt, Verdict

WORDS = " ".join(f"w{n}" for n in range(1, 13))


def pairs(prompts: int = 30) -> list[Pair]:
    """Two good and two plain answers to each prompt, every pair of them."""
    found = []
    for number in range(prompts):
        texts = [f"{kind} {WORDS} {'and so on ' * index}{number}" for index, kind in enumerate(("good", "plain"))]
        answers = [response_of(text, index=index) for index, text in enumerate(texts)]
        found += [Pair.of(prompt_of(f"q{number}"), *both) for both in itertools.combinations(answers, 2)]
    return found


def gold(rows: int, tie_every: int = 0) -> list[GoldPair]:
    """Every other row has its better answer on side b; with `tie_every`, people saw no difference in some."""
    made = []
    for number in range(rows):
        better, worse = f"good {WORDS} {number}", f"plain {WORDS} {number} and more"
        a, b, label = (better, worse, "a") if number % 2 else (worse, better, "b")
        tie = bool(tie_every) and number % tie_every == 0
        made.append(GoldPair(id=f"g{number}", prompt=f"question {number}", a=a, b=b, label="tie" if tie else label))
    return made


def sat(
    judge: JudgeConfig, *, rows: int = 0, prompts: int = 24, own: list[Pair] | None = None, **floors: Any
) -> ExamReport:
    asked = questions(pairs() if own is None else own, gold(rows), prompts, seed=1)
    verdicts = judge.build(Session()).judge([question.pair for question in asked])
    return grade(asked, verdicts, judge, Floors(**floors), seed=1)


def check(report: ExamReport, name: str) -> Check:
    (found,) = [each for each in report.checks if each.name == name]
    return found


def by_kind(asked: list[Question]) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for question in asked:
        found.setdefault(question.kind, []).append(question)
    return found


# ---- what is asked


def test_every_prompt_gets_every_kind_of_question_and_its_own_pairs() -> None:
    asked = by_kind(questions(pairs(), gold(3), prompts=5, seed=1))
    kinds = {"identical", "shuffled", "empty", "constant", "padded", "filler", "injected", "there", "back"}
    assert set(asked) == kinds | {"pair", "gold"}
    assert all(len({question.prompt for question in asked[kind]}) == len(asked[kind]) == 5 for kind in kinds)


def test_own_pairs_are_asked_about_exactly_as_labelling_will() -> None:
    asked = by_kind(questions(pairs(), [], prompts=5, seed=1))["pair"]
    chosen = {question.prompt for question in asked}
    assert [question.pair for question in asked] == [pair for pair in pairs() if pair.prompt.id in chosen]


def test_altered_answers_differ_from_the_original_in_what_their_name_says() -> None:
    for question in questions(pairs(), [], prompts=8, seed=1):
        answers = {each.source: each.text for each in (question.pair.a, question.pair.b)}
        if ALTERED not in answers:
            continue
        altered, original = answers[ALTERED], answers["exam/original"]
        told = {
            "identical": altered == original,
            "shuffled": sorted(altered.split()) == sorted(original.split()) and altered != original,
            "empty": altered == "",
            "constant": altered == NULL_ANSWER,
        }
        assert told.get(question.kind, altered.startswith(original) and altered != original), question.kind


def test_questions_of_a_prompt_are_together_and_those_with_altered_answers_have_a_prompt_of_their_own() -> None:
    # What a judge says of a pair may depend on what it is asked with; and by_prompt refuses a prompt that comes twice.
    ids = [question.pair.prompt.id for question in questions(pairs(), gold(4), prompts=6, seed=1)]
    assert len(list(itertools.groupby(ids))) == len(set(ids)) == 6 + 6 + 4


def test_the_sample_is_a_function_of_the_seed_and_not_of_the_order() -> None:
    def asked(found: list[Pair], seed: int) -> set[str]:
        return {question.prompt for question in questions(found, [], 6, seed)}

    assert asked(pairs(), 1) == asked(pairs()[::-1], 1)
    assert asked(pairs(), 1) != asked(pairs(), 2)


def test_an_answer_too_short_to_shuffle_and_an_empty_one_make_no_question_that_has_no_answer() -> None:
    short = [Pair.of(prompt_of("q"), response_of("Yes."), response_of("No.", index=1))]
    assert "shuffled" not in by_kind(questions(short, [], 1, 1))
    blank = [Pair.of(prompt_of("q"), response_of(""), response_of(" ", index=1))]
    assert set(by_kind(questions(blank, [], 1, 1))) == {"pair"}


def test_french_answers_are_padded_in_french() -> None:
    prompt = Prompt.model_validate({"id": "f", "prompt": "Pourquoi ?", "lang": "fr"})
    own = [Pair.of(prompt, response_of("Parce que le ciel est bleu."), response_of("Oui.", index=1))]
    (filler,) = by_kind(questions(own, [], 1, 1))["filler"]
    assert "n'hésitez pas" in filler.pair.a.text + filler.pair.b.text


# ---- what is found: a planted judge


PLANTED = Planted(accuracy=0.8, bias=1.5, unreadable=0.03)


def test_accuracy_position_bias_and_unreadable_replies_are_found_within_their_intervals() -> None:
    report = sat(BothOrders(of=PLANTED), rows=800)
    assert report.gold is not None and report.gold.accuracy is not None and report.position is not None
    assert report.gold.accuracy.low < 0.8 < report.gold.accuracy.high
    assert report.gold.accuracy.high - report.gold.accuracy.low < 0.06
    assert report.position.bias.low - 1e-9 <= 1.5 <= report.position.bias.high + 1e-9
    answered = check(report, "answered").found
    assert answered is not None and answered.low < 0.97 < answered.high
    assert report.passed, report.causes


def test_a_debiased_judge_is_as_accurate_as_an_unbiased_one() -> None:
    debiased, unbiased = (
        sat(BothOrders(of=PLANTED), rows=800),
        sat(PLANTED.model_copy(update={"bias": 0.0}), rows=800),
    )
    assert debiased.gold is not None and unbiased.gold is not None
    assert debiased.gold.accuracy is not None and unbiased.gold.accuracy is not None
    assert debiased.gold.accuracy.value == pytest.approx(unbiased.gold.accuracy.value, abs=0.01)


@pytest.mark.parametrize(("bias", "place"), [(9.0, "first"), (-9.0, "second")])
def test_a_judge_that_goes_by_the_place_fails_by_the_name_of_position_bias(bias: float, place: str) -> None:
    report = sat(BothOrders(of=Planted(bias=bias)))
    assert any(
        cause.startswith(f"position bias: it picks the answer shown {place} in 100.0 %") for cause in report.causes
    )


def test_the_place_is_named_also_where_the_judge_abstains_for_saying_something_else() -> None:
    def unread(logit_first: float) -> dict[str, Any]:
        return {"p_a": None, "abstained": "unreadable", "evidence": {"logits": [logit_first - 3, -3.0]}}

    asked = questions(pairs(), [], 24, 1)
    evidence = {"forward": unread(1.4), "reverse": unread(1.2)}
    verdicts = [said(q.pair, abstained="unreadable").model_copy(update={"evidence": evidence}) for q in asked]
    report = grade(asked, verdicts, Planted(), Floors(), 1)
    assert [cause.split(":")[0] for cause in report.causes] == ["unreadable", "position bias"]
    assert report.position is not None
    # (1.4 + 1.2) / 2 for the place, (1.4 - 1.2) / 2 between the answers.
    assert (report.position.bias.value, report.position.signal) == (pytest.approx(1.3), pytest.approx(0.1))
    assert report.position.flips.value == 1.0


def test_one_reading_of_each_pair_tells_nothing_of_the_place() -> None:
    assert sat(Planted()).position is None


# ---- what is found: faults by name


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ("null", {"null judge", "blind to word order", "blind to emptiness", "falls for the null answer"}),
        ("length", {"length bias", "falls for the null answer", "blind to word order", "fond of filler",
                    "follows injected verdicts"}),
        ("follows", {"follows injected verdicts", "falls for the null answer"}),
        ("fidgets", {"identical is no tie"}),
    ],
)  # fmt: skip
def test_a_faulty_judge_fails_by_the_name_of_its_fault(fault: Any, names: set[str]) -> None:
    report = sat(Planted(fault=fault, surety=5.0))
    assert not report.passed
    assert {cause.split(":")[0] for cause in report.causes} == names


def test_a_fair_judge_passes() -> None:
    report = sat(Planted(accuracy=0.9), rows=300)
    assert report.passed and report.causes == ()
    assert all(each.passed for each in report.checks)


def test_a_judge_that_knows_less_than_a_coin_is_wrong_by_name() -> None:
    report = sat(Planted(accuracy=0.3), rows=300)
    assert any(cause.startswith("wrong: right on") for cause in report.causes)


def test_a_judge_whose_verdict_depends_on_the_side_is_found() -> None:
    # Order-free by its own word, and not in truth.
    report = sat(Planted(bias=3.0))
    assert any(cause.startswith("the sides decide") for cause in report.causes)


def test_to_call_an_empty_answer_empty_is_right() -> None:
    asked = questions(pairs(), [], 24, 1)
    verdicts = [
        said(q.pair, abstained="empty") if q.kind == "empty" else Planted().build(Session()).judge([q.pair])[0]
        for q in asked
    ]
    report = grade(asked, verdicts, Planted(), Floors(), 1)
    assert report.passed, report.causes
    found = check(report, "empty loses").found
    assert found is not None and found.value == 1.0


def test_a_few_prompts_that_scatter_are_no_fault_and_many_are() -> None:
    # Of 24 shuffled answers 20 lost, 83 % [67, 96]: the interval holds the floor of 90 %. Of 240, 200: it does not.
    for prompts, passes in ((24, True), (240, False)):
        asked = questions(pairs(prompts), [], prompts, 1)
        verdicts, seen = [], 0
        for q in asked:
            (verdict,) = Planted().build(Session()).judge([q.pair])
            if q.kind == "shuffled":
                seen += 1
                verdict = verdict.model_copy(update={"p_a": 1 - (verdict.p_a or 0)}) if seen % 6 == 0 else verdict
            verdicts.append(verdict)
        report = grade(asked, verdicts, Planted(), Floors(), 1)
        assert check(report, "shuffled loses").found is not None
        assert check(report, "shuffled loses").passed is passes


# ---- against people


def answered(rows: list[GoldPair], p_of: Any) -> ExamReport:
    """The report on a judge that says `p_of(row)` for the row's `a`."""
    asked = questions([], rows, 0, 1)
    verdicts = []
    for q in asked:
        assert q.gold is not None
        p = p_of(q.gold)
        verdicts.append(
            said(q.pair, p if p is None or q.pair.a.source == q.side_a else 1 - p, None if p is not None else "refused")
        )
    return grade(asked, verdicts, Planted(), Floors(), 1)


SIDES = {"a": 1, "b": -1, "tie": 0}


def row(name: str, label: Any, a: str = "x", b: str = "yy", **more: Any) -> GoldPair:
    return GoldPair(id=name, prompt=name, a=a, b=b, label=label, **more)


def test_ten_rows_by_hand() -> None:
    p = {"1": 0.9, "2": 0.9, "3": 0.2, "4": 0.5, "5": 0.52, "6": 0.8, "7": None}
    rows = [
        row("1", "a"), row("2", "b"), row("3", "b"), row("4", "a"), row("5", "tie"),
        row("6", "a", a="longer", b="short"), row("7", "a"),
    ]  # fmt: skip
    found = answered(rows, lambda each: p[each.id]).gold
    assert found is not None and found.accuracy is not None and found.kappa is not None
    assert (found.rows, found.answered, found.ties, found.abstained) == (7, 6, 1, {"refused": 1})
    # Right, wrong, right, one half, -, right.
    assert found.accuracy.value == pytest.approx(3.5 / 5)
    # b is the longer one but in row 6. People preferred it in 2, 3 and a in 6; the shorter one in 1 and 4.
    assert found.longer_is_better == pytest.approx(3 / 5)
    assert found.accuracy_longer_better == pytest.approx(2 / 3)
    assert found.accuracy_longer_worse == pytest.approx(1.5 / 2)
    # Said a a b tie tie a, people a b b a tie a; by the sides of the pairs, which of them is a is a hash.
    sides = [question.pair.a.source == question.side_a for question in questions([], rows[:6], 0, 1)]
    order = [question.gold.id for question in questions([], rows[:6], 0, 1) if question.gold]
    turned = [SIDES[row.label] * (1 if sides[order.index(row.id)] else -1) for row in rows[:6]]
    told = [kind * (1 if sides[order.index(str(n))] else -1) for n, kind in enumerate((1, 1, -1, 0, 0, 1), start=1)]
    chance = sum(told.count(kind) * turned.count(kind) for kind in (1, -1, 0)) / 36
    assert found.kappa.value == pytest.approx((4 / 6 - chance) / (1 - chance))
    assert found.brier == pytest.approx((0.01 + 0.81 + 0.04 + 0.25 + 0.0004 + 0.04) / 6)
    # Margins of the right: 0.4, 0.3, 0.3; of the wrong one: 0.4. One half of a win in three.
    assert found.auroc == pytest.approx(0.5 / 3)


def test_subsets_are_counted_for_themselves() -> None:
    rows = [
        row(str(n), "a", source="s", meta={"kind": "easy" if n % 2 else "hard", "n": n, "id": f"u{n}"})
        for n in range(40)
    ]
    found = answered(rows, lambda each: 0.9 if each.meta["kind"] == "easy" else 0.4).gold
    assert found is not None
    # One source is no subset, numbers are none, and forty different ids are none.
    assert {name: estimate.value for name, estimate in found.by_subset.items()} == {
        "kind: easy": 1.0,
        "kind: hard": 0.0,
    }


def test_rows_of_one_prompt_stand_or_fall_together() -> None:
    rows = [GoldPair(id=f"{n}", prompt=f"q{n // 5}", a="x", b=f"y{n}", label="a") for n in range(100)]
    found = answered(rows, lambda each: 0.9 if int(each.prompt[1:]) % 2 else 0.1).gold
    assert found is not None and found.accuracy is not None
    assert (found.accuracy.n, found.accuracy.n_clusters) == (100, 20)


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(("name", "longer"), [("llmbar", 0.27), ("evalbiasbench", 0.26), ("pandalm_human", 0.68)])
def test_always_the_longer_one_scores_on_real_data_what_its_publishers_counted(name: str, longer: float) -> None:
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{name}: {path} is not there")
    asked = questions([], store.read_jsonl(path, GoldPair), 0, 1)
    verdicts = Length().build(Session()).judge([question.pair for question in asked])
    found = grade(asked, verdicts, Length(), Floors(), 1).gold
    assert found is not None and found.accuracy is not None and found.longer_is_better is not None
    assert found.accuracy.value == pytest.approx(longer, abs=0.01)
    assert found.longer_is_better == pytest.approx(longer, abs=0.01)
    assert (found.accuracy_longer_better, found.accuracy_longer_worse) == (1.0, 0.0)


# ---- calibration


def test_the_temperature_is_fitted_on_gold_and_the_calibration_error_falls() -> None:
    # As sure as sigmoid(4), right four times in five: T is 4 / log 4, but for Platt's two answers in 202.
    report = answered(
        gold(200), lambda each: sigmoid(4.0) if (int(each.id[1:]) % 5 == 0) != (each.label == "a") else sigmoid(-4.0)
    )
    assert report.temperature == pytest.approx(4 / 1.3862944, rel=0.02)
    assert report.calibrated
    assert report.gold is not None and report.gold.ece is not None and report.gold.ece_calibrated is not None
    assert report.gold.ece == pytest.approx(sigmoid(4) - 0.8, abs=1e-6)
    assert report.gold.ece_calibrated < report.gold.ece / 3


def test_without_gold_the_temperature_is_one_and_a_verdict_stays_the_same_object() -> None:
    report, verdict = sat(Planted()), said(pairs(1)[0], 0.8)
    assert (report.temperature, report.calibrated) == (1.0, False)
    assert report.calibrate(verdict) is verdict


def test_a_calibrated_verdict_keeps_what_the_judge_said() -> None:
    report = sat(Planted()).model_copy(update={"temperature": 2.0})
    found = report.calibrate(said(pairs(1)[0], 0.9))
    assert found.p_a == pytest.approx(sigmoid(logit(0.9) / 2))
    assert found.evidence == {"p_raw": 0.9}
    silent = said(pairs(1)[0], abstained="refused")
    assert report.calibrate(silent) is silent


def test_a_report_can_be_written_and_read() -> None:
    for report in (sat(BothOrders(of=PLANTED), rows=40), sat(Planted(fault="null"))):
        assert ExamReport.model_validate_json(report.model_dump_json()) == report


def test_verdicts_that_are_not_one_a_question_are_refused() -> None:
    asked = questions(pairs(), [], 2, 1)
    verdicts: list[Verdict] = Planted().build(Session()).judge([q.pair for q in asked])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        grade(asked, verdicts[:-1], Planted(), Floors(), 1)
