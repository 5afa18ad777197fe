"""Strengths against choix, statsmodels and SciPy, and what no oracle says."""

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from pipeline.statistics.bradley_terry import _resampled, comparable, counted, design, fit, strengths

NAMES = ("base", "dpo", "kto")
Rows = list[tuple[str, str, str, float]]

WINS = {("base", "dpo"): (9, 21), ("base", "kto"): (12, 18), ("dpo", "kto"): (17, 13)}
"""Wins of the first and of the second."""

OUTCOMES = {
    ("base", "dpo"): (7, 6, 14), ("dpo", "base"): (19, 5, 8), ("base", "kto"): (10, 4, 11),
    ("kto", "base"): (15, 7, 9), ("dpo", "kto"): (12, 9, 10), ("kto", "dpo"): (9, 8, 13),
}  # fmt: skip
"""Who stood on side a and on side b: wins of a, ties, wins of b."""


def rows_of(outcomes: dict[tuple[str, str], tuple[int, ...]], prompts: int = 10) -> Rows:
    """One row a verdict, dealt out to the prompts."""
    said = [
        (a, b, score)
        for (a, b), counts in outcomes.items()
        for score, count in zip((1.0, 0.5, 0.0), counts if len(counts) == 3 else (counts[0], 0, counts[1]), strict=True)
        for _ in range(count)
    ]
    return [(f"p{place % prompts}", *each) for place, each in enumerate(said)]


def test_without_ties_the_strengths_are_those_of_choix() -> None:
    # choix 0.4.1, opt_pairwise(3, data, alpha=0, method="Newton-CG", tol=1e-12), against base; ilsr_pairwise agrees.
    verdicts = counted(NAMES, rows_of(WINS))
    without_side = design(verdicts, 3, 0)[:, :-1]
    found = fit(verdicts.counts_GC3.sum(axis=0), without_side, ridge=0.0)
    assert found[:2] == pytest.approx([0.784415674356743, 0.46149591340384516], abs=1e-6)


def test_with_ties_and_a_side_they_are_those_of_statsmodels() -> None:
    # statsmodels 0.15.0: the model is log-linear, so a Poisson GLM with one effect a cell has its estimates.
    verdicts = counted(NAMES, rows_of(OUTCOMES))
    found = fit(verdicts.counts_GC3.sum(axis=0), design(verdicts, 3, 0), ridge=0.0)
    theirs = [0.7294185915619389, 0.4001610118378192, 0.07045062109501854, -0.5294250980087285]
    assert found == pytest.approx(theirs, abs=1e-6)


def test_the_penalised_likelihood_is_at_its_maximum_by_davidsons_own_formula() -> None:
    def loss(beta: Any) -> float:
        pi, gamma, nu = np.exp([0, *beta[:2]]), math.exp(beta[2]), math.exp(beta[3])
        total = 0.005 * float(np.sum(np.square(beta)))
        for (a, b), counts in OUTCOMES.items():
            one, other = gamma * pi[NAMES.index(a)], pi[NAMES.index(b)]
            weights = np.array([one, nu * math.sqrt(one * other), other])
            total -= float(np.dot(counts, np.log(weights / weights.sum())))
        return total

    theirs = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    verdicts = counted(NAMES, rows_of(OUTCOMES))
    found = fit(verdicts.counts_GC3.sum(axis=0), design(verdicts, 3, 0), ridge=0.01)
    assert found == pytest.approx(theirs, abs=1e-6)


def test_two_checkpoints_have_the_log_odds_of_their_win_rate() -> None:
    found = strengths(
        "j", ("base", "dpo"), "base", rows_of({("dpo", "base"): (15, 5), ("base", "dpo"): (5, 15)}), resamples=50
    )
    assert found is not None
    assert found.strengths[1].value == pytest.approx(math.log(3), abs=0.01)
    assert (found.side.value, found.tie, found.largest_misfit) == (
        pytest.approx(0, abs=1e-9),
        None,
        pytest.approx(0, abs=1e-3),
    )
    assert found.strengths[1].elo == pytest.approx(1000 + 400 * math.log10(3), abs=2)


def test_planted_strengths_ties_and_side_are_recovered() -> None:
    theta, side, tau = {"base": 0.0, "dpo": 0.5, "kto": -0.4}, 0.6, -1.0
    random, rows = np.random.default_rng(1), []
    for number in range(4000):
        a, b = random.permutation(NAMES)[:2]
        lead = theta[a] - theta[b] + side
        weights = np.exp([lead / 2, tau, -lead / 2])
        rows.append((f"p{number % 500}", str(a), str(b), float(random.choice([1, 0.5, 0], p=weights / weights.sum()))))
    found = strengths("j", NAMES, "base", rows, resamples=200)
    assert found is not None and found.tie is not None
    assert [one.value for one in found.strengths] == pytest.approx([0, 0.5, -0.4], abs=0.12)
    assert found.side.low < side < found.side.high
    assert found.tie == pytest.approx(math.exp(tau), rel=0.1)


def test_a_side_that_wins_everything_harms_nobody_where_sides_are_even() -> None:
    even = dict.fromkeys(itertools.permutations(NAMES, 2), (20, 0))
    found = strengths("j", NAMES, "base", rows_of(even), resamples=200)
    assert found is not None
    assert [one.value for one in found.strengths] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.side.low > 2


def test_who_never_lost_has_no_strength_and_who_lost_once_has_one_that_is_hardly_known() -> None:
    never = rows_of({("dpo", "base"): (30, 0), ("base", "dpo"): (0, 30)})
    assert strengths("j", ("base", "dpo"), "base", never) is None
    # Once on either side, or the side would be to blame.
    lost: Rows = [("x", "base", "dpo", 1.0), ("y", "dpo", "base", 0.0)]
    found = strengths("j", ("base", "dpo"), "base", never + lost, resamples=500)
    assert found is not None
    assert 2 < found.strengths[1].low < found.strengths[1].value == pytest.approx(math.log(30), abs=0.05)
    assert 6 < found.strengths[1].high < 20


def test_half_a_win_each_is_no_tie_but_leaves_the_strengths_the_same() -> None:
    unsure: Rows = [("p", "dpo", "base", 0.7), ("q", "base", "dpo", 0.3)] * 40
    found = strengths("j", ("base", "dpo"), "base", unsure, resamples=50)
    assert found is not None and found.tie is None
    assert found.strengths[1].value == pytest.approx(math.log(7 / 3), abs=0.01)


def test_a_circle_is_told_by_its_misfit() -> None:
    circle = {("base", "dpo"): (27, 3), ("dpo", "kto"): (27, 3), ("kto", "base"): (27, 3)}
    turned = {(b, a): (losses, wins) for (a, b), (wins, losses) in circle.items()}
    found = strengths("j", NAMES, "base", rows_of(circle | turned), resamples=50)
    assert found is not None
    # Each beats the next in 90 %, and no order of them says so: all are equal, at 50 %.
    assert found.largest_misfit == pytest.approx(0.4, abs=1e-6)


def test_who_met_nobody_or_beat_nobody_leaves_no_scale() -> None:
    def scores(*pairs: str) -> Rows:
        return [("p", pair[0], pair[1], 0.5 if pair[2:] == "=" else 1.0) for pair in pairs]

    assert strengths("j", NAMES, "base", rows_of({("dpo", "base"): (3, 3)})) is None
    assert strengths("j", NAMES, "base", []) is None
    assert comparable("abcd", scores("ab", "bc", "cd", "da"))
    assert comparable("abcd", scores("ab=", "bc=", "cd="))
    assert not comparable("abcd", scores("ab", "ba", "cd", "dc"))
    # c and d never won against a and b, though all met.
    assert not comparable("abcd", scores("ab", "ba", "cd", "dc", "ac", "bd"))


def test_prompts_and_not_verdicts_are_resampled() -> None:
    few, many = (strengths("j", NAMES, "base", rows_of(OUTCOMES, prompts), resamples=300) for prompts in (12, 170))
    twice = strengths("j", NAMES, "base", rows_of(OUTCOMES, 170) * 2, resamples=300)
    assert few is not None and many is not None and twice is not None
    assert (few.n_clusters, many.n_clusters, twice.n_clusters) == (12, 170, 170)
    width, doubled = (found.strengths[1].high - found.strengths[1].low for found in (many, twice))
    assert doubled == pytest.approx(width, rel=0.02)


def test_two_that_never_met_are_on_one_scale_through_a_third() -> None:
    # a beats b in 3 of 4, and c in 1 of 4; b and c never met. Without ties the fit of a tree is exact: log 3 apart.
    rows = [("p1", "a", "b", 1.0)] * 3 + [("p1", "a", "b", 0.0)] + [("p2", "a", "c", 0.0)] * 3 + [("p2", "a", "c", 1.0)]
    rows += [(f"q{number}", b, a, 1 - p) for number, (_, a, b, p) in enumerate(rows * 20)]
    found = strengths("j", ["a", "b", "c"], "a", rows * 20)
    assert found is not None
    assert [one.value for one in found.strengths] == pytest.approx([0, -math.log(3), math.log(3)], abs=0.02)
    assert found.largest_misfit < 0.01


def test_resamples_are_drawn_in_parts_that_together_are_those_drawn_at_once() -> None:
    counts_GC3 = np.random.default_rng(1).random((40, 3, 3))
    weights_RG = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), size=250)
    at_once_RC3 = np.einsum("rg,gco->rco", weights_RG, counts_GC3)
    np.testing.assert_allclose(_resampled(counts_GC3, 250, seed=7), at_once_RC3, rtol=1e-12)


def test_ten_thousand_prompts_take_a_few_megabytes() -> None:
    counts_GC3 = np.ones((10_000, 2, 3))
    tracemalloc.start()
    _resampled(counts_GC3, 300, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 100 resamples of 10,000 prompts in 8 bytes are 8 MB, as whole numbers and as others; 300 at once would be 48.
    assert peak < 25e6
