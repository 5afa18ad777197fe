"""The chosen answer is the one the verdict names, nothing is chosen without a verdict, and the counts add up."""

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from pipeline import views
from pipeline.errors import DataError
from pipeline.records import ABSTENTIONS, Message, Pair, Preference, Prompt, Response, Verdict

PROMPT = Prompt.model_validate({"id": "p", "prompt": "Which?"})


def pair_of(one: str, other: str, prompt: Prompt = PROMPT) -> Pair:
    return Pair.of(prompt, Response(text=one, source="s"), Response(text=other, source="s"))


def says(pair: Pair, p_a: float | None, abstained: str | None = None) -> Verdict:
    return Verdict.model_validate(
        {"pair_id": pair.id, "judge": "j", "fingerprint": "f", "p_a": p_a, "abstained": abstained}
    )


def prefers(pair: Pair, text: str, p: float) -> Verdict:
    """The answer with this text is better with probability p, whichever side it is on."""
    return says(pair, p if pair.a.text == text else 1 - p)


def tournament(wins: dict[tuple[str, str], float], prompt: Prompt = PROMPT) -> tuple[list[Pair], list[Verdict]]:
    """{(one, other): probability that one is better} as pairs and verdicts."""
    pairs = [pair_of(one, other, prompt) for one, other in wins]
    return pairs, [prefers(pair, one, p) for pair, ((one, _), p) in zip(pairs, wins.items(), strict=True)]


def extremes(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """(best, worst) of each prompt that gives one."""
    found = views.best_worst(pairs, verdicts)
    chosen = views.decided([pair for pair, _ in found], [verdict for _, verdict in found])
    return [(preference.chosen.text, preference.rejected.text) for preference in chosen]


# Decided


@pytest.mark.parametrize("winner", ["one", "two"])
def test_the_chosen_answer_is_the_one_the_verdict_names_on_either_side(winner: str) -> None:
    for pair in (pair_of("one", "two"), pair_of("one", "two").swap()):
        (preference,) = views.decided([pair], [prefers(pair, winner, 0.8)])
        assert preference.chosen.text == winner
        assert preference.rejected.text != winner
        assert preference.confidence == pytest.approx(0.8)


def test_a_tie_chooses_nobody() -> None:
    pair = pair_of("one", "two")
    assert views.decided([pair], [says(pair, 0.5)]) == []


@pytest.mark.parametrize("reason", ABSTENTIONS)
def test_an_abstention_chooses_nobody(reason: str) -> None:
    pair = pair_of("one", "two")
    assert views.decided([pair], [says(pair, None, reason)]) == []


@pytest.mark.parametrize(("p_a", "kept"), [(0.7, True), (0.69, False), (0.3, True), (0.31, False), (1.0, True)])
def test_less_confidence_than_asked_for_chooses_nobody(p_a: float, kept: bool) -> None:
    pair = pair_of("one", "two")
    assert len(views.decided([pair], [says(pair, p_a)], min_confidence=0.7)) == kept


@pytest.mark.parametrize("p_a", [0.5 + 2**-53, 0.5 - 2**-54, 0.5 - 2**-53, 0.0])
def test_the_least_difference_and_the_greatest_still_have_a_winner(p_a: float) -> None:
    pair = pair_of("one", "two")
    (preference,) = views.decided([pair], [says(pair, p_a)])
    assert preference.chosen == (pair.a if p_a > 0.5 else pair.b)
    assert 0.5 < preference.confidence <= 1


def test_verdicts_find_their_pairs_by_id_and_not_by_place() -> None:
    pairs = [pair_of("one", str(i)) for i in range(4)]
    verdicts = [prefers(pair, "one", 0.9) for pair in pairs]
    assert views.decided(pairs, verdicts[::-1]) == views.decided(pairs, verdicts)


def test_a_lost_foreign_or_double_verdict_is_an_error_and_shifts_nothing() -> None:
    pairs = [pair_of("one", str(i)) for i in range(3)]
    verdicts = [says(pair, 0.9) for pair in pairs]
    foreign = says(pair_of("x", "y"), 0.9)
    for wrong in (verdicts[:2], [*verdicts, foreign], [*verdicts[:2], foreign], [*verdicts, verdicts[0]]):
        for view in (views.decided, views.best_worst, views.count):
            with pytest.raises(DataError, match="label exactly these pairs"):
                view(pairs, wrong)
    with pytest.raises(DataError):
        views.decided([*pairs, pairs[0]], verdicts)


# Best against worst


def test_the_best_answer_is_set_against_the_worst() -> None:
    # Mean probability of being better: x (0.9 + 0.8) / 2, y (0.1 + 0.7) / 2, z (0.2 + 0.3) / 2.
    assert extremes(*tournament({("x", "y"): 0.9, ("x", "z"): 0.8, ("y", "z"): 0.7})) == [("x", "z")]


def test_each_prompt_gives_its_own() -> None:
    other = Prompt.model_validate({"id": "q", "prompt": "And which?"})
    pairs, verdicts = tournament({("x", "y"): 0.9})
    more_pairs, more_verdicts = tournament({("x", "y"): 0.1}, other)
    assert extremes([*pairs, *more_pairs], [*verdicts, *more_verdicts]) == [("x", "y"), ("y", "x")]


@pytest.mark.parametrize("answers", [2, 3, 4])
def test_answers_that_are_all_tied_give_no_pair(answers: int) -> None:
    texts = [str(i) for i in range(answers)]
    assert extremes(*tournament(dict.fromkeys(combinations(texts, 2), 0.5))) == []


def test_a_circle_gives_no_pair() -> None:
    for i in range(20):  # with a winner drawn by hash, half of these would give one
        x, y, z = f"x{i}", f"y{i}", f"z{i}"
        assert extremes(*tournament({(x, y): 0.9, (y, z): 0.9, (z, x): 0.9})) == []


def test_best_and_worst_that_were_never_compared_give_no_pair() -> None:
    assert extremes(*tournament({("x", "y"): 0.9, ("y", "z"): 0.9})) == []


def test_best_and_worst_whose_own_verdict_points_the_other_way_give_no_pair() -> None:
    # x is best and z worst on the whole, but face to face z was preferred.
    assert extremes(*tournament({("x", "y"): 1.0, ("y", "z"): 0.9, ("x", "z"): 0.45})) == []


@pytest.mark.parametrize("verdict", [{"p_a": 0.5}, {"p_a": None, "abstained": "failed"}])
def test_best_and_worst_without_a_winner_of_their_own_give_no_pair(verdict: dict[str, Any]) -> None:
    pairs, verdicts = tournament({("x", "y"): 0.9, ("y", "z"): 0.9, ("x", "z"): 0.9})
    verdicts[2] = says(pairs[2], **verdict)
    assert extremes(pairs, verdicts) == []


def test_an_abstention_is_no_defeat() -> None:
    # Counted as 0 for y it would make y the worst with (0.4 + 0) / 2; left out, y has 0.4 and z has 0.3.
    pairs, verdicts = tournament({("w", "y"): 0.6, ("w", "z"): 0.7, ("x", "z"): 0.7, ("x", "y"): 0.9, ("w", "x"): 0.6})
    verdicts[3] = says(pairs[3], None, "unreadable")
    assert extremes(pairs, verdicts) == [("w", "z")]


def test_a_prompt_without_any_answer_gives_no_pair() -> None:
    pair = pair_of("x", "y")
    assert views.best_worst([pair], [says(pair, None, "failed")]) == []


def test_equal_scores_are_ranked_the_same_whatever_the_order_and_the_sides() -> None:
    # x and y are equally good, and equally better than z.
    pairs, verdicts = tournament({("x", "y"): 0.5, ("x", "z"): 0.75, ("y", "z"): 0.75})
    judged = list(zip(pairs, verdicts, strict=True))
    judged += [(pair.swap(), verdict.swap()) for pair, verdict in judged]
    found = set()
    for chosen in permutations(judged, 3):
        if len({pair.id for pair, _ in chosen}) == 3:
            found |= set(extremes(*zip(*chosen, strict=True)))
    assert found in ({("x", "z")}, {("y", "z")})


def test_over_many_prompts_equal_scores_favour_nobody() -> None:
    found = []
    for i in range(200):
        prompt = Prompt.model_validate({"id": str(i), "prompt": "Which?"})
        one, other, worst = f"x{i}", f"y{i}", f"z{i}"
        wins = {(one, other): 0.5, (one, worst): 0.75, (other, worst): 0.75}
        found += extremes(*tournament(wins, prompt))
    assert 60 < sum(best.startswith("x") for best, _ in found) < 140  # more than five standard deviations each way


# Rows


def preference_of(name: str, chosen: str, rejected: str) -> Preference:
    messages = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Which?"),
    )
    return Preference(
        pair_id=name,
        prompt=Prompt(id="p", messages=messages),
        chosen=Response(text=chosen, source="s"),
        rejected=Response(text=rejected, source="s"),
        confidence=0.75,
    )


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]


def test_paired_rows_are_in_the_conversational_preference_format() -> None:
    assert views.paired([preference_of("1", "good", "bad")]) == [
        {
            "prompt": ASKED,
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
            "confidence": 0.75,
            "cut": [],
        }
    ]


def test_unpaired_rows_are_in_the_conversational_unpaired_preference_format() -> None:
    assert views.unpaired([preference_of("1", "good", "bad")]) == [
        {"prompt": ASKED, "completion": [{"role": "assistant", "content": "good"}], "label": True, "cut": []},
        {"prompt": ASKED, "completion": [{"role": "assistant", "content": "bad"}], "label": False, "cut": []},
    ]


def test_rows_name_the_answers_that_were_cut_off_at_the_token_limit() -> None:
    preference = preference_of("1", "good", "bad")
    cut = preference.model_copy(update={"rejected": Response(text="bad", source="s", finished=False)})
    assert [row["cut"] for row in views.paired([cut])] == [["rejected_ids"]]
    assert [(row["label"], row["cut"]) for row in views.unpaired([cut])] == [(True, []), (False, ["completion_ids"])]


def test_rows_are_in_the_order_of_the_pair_ids() -> None:
    preferences = [preference_of(name, f"good {name}", "bad") for name in "312"]
    assert [row["chosen"][0]["content"] for row in views.paired(preferences)] == ["good 1", "good 2", "good 3"]
    assert views.unpaired(preferences) == views.unpaired(sorted(preferences, key=lambda each: each.pair_id))


# Counts


def test_answers_to_a_prompt_come_together_each_once_with_the_pairs_of_them() -> None:
    prompt, other = tiny.prompt_of("Why?"), tiny.prompt_of("How?")
    best, middle, worst = (tiny.response_of(text, index=n, finished=n != 1) for n, text in enumerate("abc"))
    preferences = [
        tiny.preference_of(prompt, one, two) for one, two in ((best, middle), (best, worst), (middle, worst))
    ]
    alone = tiny.preference_of(other, worst, best)
    rows = {row["prompt"][0]["content"]: row for row in views.together([*preferences, alone])}
    assert rows["How?"] == {
        "prompt": [{"role": "user", "content": "How?"}], "answers": ["c", "a"], "cut": [False, False],
        "pairs": [[0, 1]], "confidence": [0.9],
    }  # fmt: skip
    row = rows["Why?"]
    assert sorted(row["answers"]) == ["a", "b", "c"]
    assert dict(zip(row["answers"], row["cut"], strict=True)) == {"a": False, "b": True, "c": False}
    pairs = {(row["answers"][one], row["answers"][two]) for one, two in row["pairs"]}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")}
    assert row["confidence"] == [0.9] * 3
    assert views.together([alone, *preferences[::-1]]) == list(rows.values())


def test_the_counts_say_what_became_of_each_pair() -> None:
    pairs = [pair_of("one", str(i)) for i in range(6)]
    answers: list[tuple[float | None, str | None]] = [
        (0.9, None), (0.1, None), (0.6, None), (0.5, None), (None, "failed"), (None, "unreadable"),
    ]  # fmt: skip
    verdicts = [says(pair, p, reason) for pair, (p, reason) in zip(pairs, answers, strict=True)]
    assert views.count(pairs, verdicts, min_confidence=0.7) == views.Counts(
        pairs=6, decided=2, ties=1, below_confidence=1, abstained={"failed": 1, "unreadable": 1}
    )


@given(st.lists(st.one_of(st.floats(0, 1), st.just(0.5), st.sampled_from(ABSTENTIONS)), max_size=30), st.floats(0.5, 1))
def test_the_counts_add_up_and_agree_with_what_was_decided(answers: list[float | str], least: float) -> None:
    pairs = [pair_of("one", str(i)) for i in range(len(answers))]
    verdicts = [
        says(pair, None, answer) if isinstance(answer, str) else says(pair, answer)
        for pair, answer in zip(pairs, answers, strict=True)
    ]
    counts = views.count(pairs, verdicts, least)
    assert counts.decided + counts.ties + counts.below_confidence + sum(counts.abstained.values()) == counts.pairs
    assert counts.pairs == len(answers)
    preferences = views.decided(pairs, verdicts, least)
    assert len(preferences) == counts.decided
    assert all(each.chosen != each.rejected for each in preferences)


@pytest.mark.parametrize(
    ("p_a", "bin_"),
    [
        (0.51, 0),
        (0.549, 0),
        (0.55, 1),
        (0.45, 1),
        (0.6, 2),
        (0.65, 3),
        (0.7, 4),
        (0.85, 7),
        (0.95, 9),
        (1.0, 9),
        (0.0, 9),
    ],
)
def test_the_histogram_counts_winners_by_confidence_on_either_side(p_a: float, bin_: int) -> None:
    pair = pair_of("one", "two")
    verdicts = [says(pair, p_a), says(pair, 0.5), says(pair, None, "failed")]
    assert views.confidence_histogram(verdicts) == [int(i == bin_) for i in range(10)]
