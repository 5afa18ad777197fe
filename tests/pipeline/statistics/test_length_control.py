"""Length control finds what was planted, changes nothing where nothing was, and says where it cannot tell."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from pipeline.statistics.length_control import LARGEST, LengthCoefficient, coefficient, controlled, relative, solve
from pipeline.statistics.win_rate import win_rate

Drawn = tuple[list[float], list[float], list[str]]


def drawn(seed: int, prompts: int, theta: float, phi: float, longer: float = 0.0, each: int = 2) -> Drawn:
    """Scores, d and prompts under the model."""
    random = np.random.default_rng(seed)
    d = np.clip(random.normal(longer, 0.25, size=prompts * each), -0.95, 0.95)
    won = random.uniform(size=d.shape) < expit(theta + phi * d)
    return won.astype(float).tolist(), d.tolist(), [f"p{place // each}" for place in range(len(d))]


def known(value: float, error: float = 0.0) -> LengthCoefficient:
    return LengthCoefficient(judge="j", value=value, standard_error=error, n=1000, n_clusters=500)


def test_a_planted_coefficient_is_recovered() -> None:
    found = coefficient("j", *drawn(1, 2000, 0.0, 2.0))
    assert found.value is not None and found.standard_error is not None
    assert found.value == pytest.approx(2.0, abs=3 * found.standard_error)
    assert found.standard_error < 0.2


def test_the_win_rate_at_equal_length_is_recovered_where_the_raw_one_is_not() -> None:
    p, d, prompts = drawn(2, 3000, 0.0, 3.0, longer=0.15)
    found = controlled("dpo", "base", coefficient("j", *drawn(3, 3000, 0.0, 3.0)), p, d, prompts)
    assert found.win_rate is not None and found.low is not None and found.high is not None
    assert np.mean(p) > 0.58
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.06


def test_without_a_coefficient_the_win_rate_and_its_interval_are_unchanged() -> None:
    p, d, prompts = drawn(4, 60, 0.7, 2.0, longer=0.1)
    found, raw = controlled("dpo", "base", known(0.0), p, d, prompts), win_rate(p, prompts, seed=0)
    assert found.win_rate == pytest.approx(raw.win_rate, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((raw.low, raw.high), abs=1e-9)


def test_answers_of_one_length_are_left_as_they_are_whatever_the_judge_gives_to_length() -> None:
    p, _, prompts = drawn(5, 60, 0.7, 0.0)
    found, raw = controlled("dpo", "base", known(4.0, 1.0), p, [0.0] * 120, prompts), win_rate(p, prompts, seed=0)
    assert (found.win_rate, found.low, found.high) == pytest.approx((raw.win_rate, raw.low, raw.high), abs=1e-9)


def test_the_exchanged_comparison_is_the_mirror() -> None:
    p, d, prompts = drawn(6, 60, 0.7, 2.0, longer=0.1)
    there = controlled("dpo", "base", known(2.0, 0.3), p, d, prompts)
    back = controlled("base", "dpo", known(2.0, 0.3), [1 - each for each in p], [-each for each in d], prompts)
    assert there.win_rate is not None and there.low is not None and there.high is not None
    assert (back.win_rate, back.low, back.high) == pytest.approx((1 - there.win_rate, 1 - there.high, 1 - there.low))


def test_the_error_of_the_coefficient_is_in_the_interval_where_lengths_differ() -> None:
    p, d, prompts = drawn(7, 200, 0.3, 2.0, longer=0.15)
    sure, unsure = (controlled("dpo", "base", known(2.0, error), p, d, prompts) for error in (0.0, 1.0))
    assert sure.win_rate == unsure.win_rate
    assert None not in (sure.low, sure.high, unsure.low, unsure.high)
    # theta has the error 1 / sqrt(sum w) with the logistic weights w, and moves with phi by the mean d that they weigh.
    s = expit(np.log(sure.win_rate / (1 - sure.win_rate)) + 2 * np.array(d))  # type: ignore[operator]
    own, carried = 1 / np.sqrt((s * (1 - s)).sum()), np.average(d, weights=s * (1 - s))
    width, wider = (found.high - found.low for found in (sure, unsure))  # type: ignore[operator]
    assert wider / width == pytest.approx(np.sqrt(1 + (carried / own) ** 2), rel=0.05)


def test_the_zero_is_scipys() -> None:
    p, d, _ = (np.array(each) for each in drawn(8, 50, 0.4, 1.0))

    def slope(beta: float) -> Any:
        return d @ (p.astype(float) - expit(0.2 + beta * d.astype(float)))

    assert solve(p.astype(float), np.full(100, 0.2), d.astype(float)) == pytest.approx(brentq(slope, -30, 30), abs=1e-9)
    assert solve(np.ones(3), np.zeros(3), np.ones(3)) == LARGEST


def test_relative_length_by_pencil() -> None:
    assert (relative(30, 10), relative(10, 30), relative(5, 5), relative(0, 0), relative(7, 0)) == (0.5, -0.5, 0, 0, 1)


# --- not identified


def longer_wins(d: float) -> float:
    return float(d > 0)


def shorter_wins(d: float) -> float:
    return float(d < 0)


@pytest.mark.parametrize(("rule", "word"), [(longer_wins, "longer"), (shorter_wins, "shorter")])
def test_a_judge_that_length_alone_decides_has_no_coefficient(rule: Callable[[float], float], word: str) -> None:
    _, d, prompts = drawn(9, 100, 0.0, 0.0)
    found = coefficient("length", [rule(each) for each in d], d, prompts)
    assert found.value is None
    assert found.not_identified == f"of two answers by one policy the {word} always wins"
    assert controlled("dpo", "base", found, [1.0, 0.0], [0.1, -0.1], ["a", "b"]).not_identified == found.not_identified


def test_few_prompts_give_no_coefficient_and_equal_lengths_are_none() -> None:
    p, d, prompts = drawn(10, 29, 0.0, 1.0)
    found = coefficient("j", [*p, 1.0], [*d, 0.0], [*prompts, "another"])
    assert found.not_identified == "answers by one policy differ in length on 29 prompts, and 30 are needed"
    assert found.n == 58


def test_checkpoints_that_hardly_ever_answer_at_one_length_are_not_compared_at_it() -> None:
    p, d, prompts = drawn(11, 200, 0.0, 2.0, longer=0.5)
    found = controlled("dpo", "base", known(2.0), p, d, prompts)
    assert (found.win_rate, found.low, found.high) == (None, None, None)
    assert found.not_identified == "lengths are nearly equal in 2 % of the verdicts, and 10 % are needed"


def test_who_won_everything_is_not_corrected() -> None:
    _, d, prompts = drawn(12, 60, 0.0, 0.0)
    assert controlled("dpo", "base", known(1.0), [1.0] * 120, d, prompts).not_identified == (
        "one of the two won everything"
    )
    assert controlled("dpo", "base", known(1.0), [], [], []).not_identified == "there is no verdict"
