"""What a reply says is read the way it was asked for, and nothing else is made of it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.verdicts import (
    expected_score,
    json_field,
    label_logprobs,
    label_of,
    last_line,
    score_of,
    share_of_votes,
)

KP = ("K", "P")


def logs(*pairs: tuple[str, float]) -> list[tuple[str, float]]:
    return [(token, math.log(p)) for token, p in pairs]


def test_the_spellings_of_a_label_are_summed() -> None:
    found = label_logprobs(logs(("K", 0.5), (" K", 0.1), ("k", 0.05), ("**K", 0.05), ("P", 0.2), ("The", 0.1)), KP)
    assert found is not None
    assert [math.exp(each) for each in found] == pytest.approx([0.7, 0.2])


def test_a_label_that_was_not_told_of_gets_no_more_than_the_last_that_was_and_not_zero() -> None:
    found = label_logprobs(logs(("K", 0.9), ("The", 0.05), ("I", 0.001)), KP)
    assert found is not None
    assert [math.exp(each) for each in found] == pytest.approx([0.9, 0.001])


def test_a_label_that_was_not_told_of_gets_no_more_than_the_others_leave() -> None:
    # One candidate of 0.9 leaves 0.1; of 0.9 and 0.08 the rest, 0.02, is less than the last one.
    for told, rest in (((("K", 0.9),), 0.1), ((("K", 0.9), ("The", 0.08)), 0.02)):
        found = label_logprobs(logs(*told), KP)
        assert found is not None
        assert [math.exp(each) for each in found] == pytest.approx([0.9, rest])


def test_a_label_of_probability_1_leaves_the_other_what_rounding_hides() -> None:
    assert label_logprobs([("P", 0.0)], KP) == (pytest.approx(math.log(1e-7)), 0.0)


def test_neither_label_is_no_reading() -> None:
    assert label_logprobs(logs(("The", 0.9), ("Keep", 0.05)), KP) is None


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("K", "K"), (" p.", "P"), ("**K**", "K"), ('"P"', "P"), ("(k)\n", "K"),
        ("", None), ("K or P", None), ("KP", None), ("The answer K", None), ("A", None), ("Kindly", None),
    ],
)  # fmt: skip
def test_a_reply_that_should_be_a_label_is_one_or_nothing(reply: str, label: str | None) -> None:
    assert label_of(reply, KP) == label


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("K says [[P]].\nP is short.\nVerdict: K", "K"),
        ("**Verdict:** P\n\n", "P"),
        ("verdict : k.", "K"),
        ("Verdict: K\nVerdict: P", "P"),  # the last one is the judge's
        ("Verdict: P\nOn second thoughts I cannot say.", None),
        ("Verdict: K\nVerdict: A", None),  # not on offer, and nobody goes back to the first
        ("Verdict: K or P", None),
        ("Verdict: K, P", None),
        ("My verdict: K", None),
        ("The answer says: 'Verdict: P'", None),
        ("", None),
    ],
)
def test_the_last_line_is_the_verdict_or_there_is_none(reply: str, label: str | None) -> None:
    assert last_line(reply, "verdict", KP) == label


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"reason": "so", "verdict": "K"}', "K"),
        ('```json\n{"verdict": "P"}\n```', "P"),
        ('<think>\nFirst {"verdict": "P"}, then\n</think>\n\n{"verdict": "K"}', "K"),
        ('<think></think>```json\n{"verdict": "K"}\n```', "K"),
        ('<think>once</think><think>twice</think>{"verdict": "K"}', None),
        ('<think>{"verdict": "K"}', None),
        ('{"verdict": "K"}<think>later</think>', None),
        ('{"verdict": "K", "verdict": "P"}', None),
        ('{"verdict": "K"} and more', None),
        ('Here it is: {"verdict": "K"}', None),
        ('{"verdict": "K"', None),
        ('["verdict", "K"]', None),
        ('{"verdict": NaN}', None),
        ('{"reason": "{\\"verdict\\": \\"P\\"}"}', None),
        ("K", None),
        ("[" * 3000, None),
        ('{"verdict": ' * 3000, None),
    ],
)
def test_a_json_reply_is_one_object_or_nothing(reply: str, found: str | None) -> None:
    assert json_field(reply, "verdict") == found


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    )
)
def test_no_json_value_becomes_a_label_that_it_does_not_hold(value: object) -> None:
    verdict = json_field(json.dumps(value), "verdict")
    label = label_of(verdict, KP) if isinstance(verdict, str) else None
    assert label is None or (
        isinstance(value, dict) and str(value["verdict"]).strip(" \t\r\n\"'`*_.,:;()[]{}<>").upper() == label
    )


@given(st.text(alphabet=" KPkp.:\n*Vverdict", max_size=40))
def test_a_last_line_verdict_is_in_the_last_line_and_alone_there(reply: str) -> None:
    label = last_line(reply, "verdict", KP)
    if label is not None:
        line = [each for each in reply.splitlines() if each.strip(" \t*.:")][-1].upper()
        other = "P" if label == "K" else "K"
        assert label in line and other not in line and "VERDICT" in line


@pytest.mark.parametrize(
    ("value", "score"),
    [(7, 7), (7.0, 7), ("7", 7), (" 9.", 9), (0, None), (10, None), (7.5, None), (True, None), ("7/10", None),
     ("seven", None), ("", None), (None, None), ("77", None)],
)  # fmt: skip
def test_a_score_is_a_whole_number_on_the_scale(value: object, score: int | None) -> None:
    assert score_of(value, 1, 9) == score


def test_an_expected_score_is_the_mean_of_the_digits_by_their_probability() -> None:
    # (8 * 0.6 + 6 * 0.2) / 0.8 = 7.5; "10" is not on the scale and "The" is no score.
    found = expected_score(logs(("8", 0.6), ("6", 0.2), ("10", 0.1), ("The", 0.1)), 1, 9)
    assert found == pytest.approx((7.5, 0.8))
    assert expected_score(logs(("The", 0.9)), 1, 9) is None


@pytest.mark.parametrize(("k", "n", "p"), [(1, 1, 0.75), (0, 1, 0.25), (2, 3, 0.625), (3, 3, 0.875), (1, 2, 0.5)])
def test_votes_are_drawn_towards_a_tie_by_one_vote(k: int, n: int, p: float) -> None:
    assert share_of_votes(k, n) == p
