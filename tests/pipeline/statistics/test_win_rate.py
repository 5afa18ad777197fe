"""Win rates and their doubts against SciPy, NumPy and pencil."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from pipeline.statistics.win_rate import clustered_mean, holm, sign_flip_p, tails, together, wilson, win_rate


def singles(count: int) -> list[str]:
    return [f"p{place}" for place in range(count)]


# --- win rate


def test_with_one_row_a_cluster_the_error_is_the_naive_one() -> None:
    scores = np.random.default_rng(0).uniform(size=80).tolist()
    found = win_rate(scores, singles(80), seed=0)
    assert found.win_rate == pytest.approx(np.mean(scores))
    assert found.standard_error == pytest.approx(stats.sem(scores))


def test_the_bootstrap_interval_agrees_with_scipys_and_so_does_wilsons_on_many_unclustered_scores() -> None:
    scores = np.random.default_rng(1).uniform(size=120)
    found = win_rate(scores.tolist(), singles(120), seed=0)
    theirs = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (found.bootstrap_low, found.bootstrap_high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_the_interval_by_pencil() -> None:
    # Clusters {1, 1}, {0, 0}, {1, 0}: mean 1/2, error sqrt(3)/6, so 1/4 / (1/12) = 3 trials; t of 2 degrees is 4.303.
    found = win_rate([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"], seed=0)
    t = 4.302653
    half = t / (1 + t * t / 3) * math.sqrt(1 / 12 + t * t / 36)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_one_certain_answer_a_prompt_has_wilsons_interval_but_for_one_trial_and_t() -> None:
    # The clustered error has n - 1 under it where the binomial has n, and t for z: at 400 prompts that is 0.1 %.
    found = win_rate([1.0] * 260 + [0.0] * 140, singles(400), seed=0)
    theirs = stats.binomtest(260, 400).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=3e-4)


def test_the_p_value_is_where_the_interval_touches_one_half() -> None:
    scores = np.random.default_rng(12).beta(3, 2, size=60).tolist()
    p = win_rate(scores, singles(60), seed=0).p_value
    assert 0 < p < 0.05
    touching = win_rate(scores, singles(60), confidence=1 - p, seed=0)
    assert touching.low == pytest.approx(0.5, abs=1e-9)


def test_the_bootstraps_tails_are_widened_as_hesterberg_says() -> None:
    # arXiv:1411.5279: alpha' = Phi(-sqrt(n / (n - 1)) t); for n = 20 and 95 % that is 0.0159 and not 0.025.
    low, high = tails(0.95, 20)
    assert low == pytest.approx(stats.norm.cdf(-math.sqrt(20 / 19) * stats.t.ppf(0.975, 19)))
    assert (low, high) == pytest.approx((0.0159, 1 - 0.0159), abs=5e-5)


def test_clustered_error_by_pencil() -> None:
    # Clusters {1, 1}, {0, 0}, {1, 0}; mean 1/2; sums of residuals 1, -1, 0; sqrt(3/2 * 2) / 6.
    found = win_rate([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"], seed=0)
    assert found.standard_error == pytest.approx(math.sqrt(3) / 6)
    assert (found.n, found.n_clusters) == (6, 3)


def test_rows_repeated_within_their_cluster_add_no_certainty() -> None:
    scores = np.random.default_rng(2).uniform(size=60).tolist()
    once, twice = win_rate(scores, singles(60), seed=0), win_rate(scores * 2, singles(60) * 2, seed=0)
    pretended = win_rate(scores * 2, singles(120), seed=0)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert twice.standard_error == pytest.approx(once.standard_error)
    assert pretended.high - pretended.low < 0.8 * (twice.high - twice.low)


def test_a_planted_sixty_percent_is_recovered_from_a_thousand_prompts() -> None:
    wins = (np.random.default_rng(3).uniform(size=1000) < 0.6).astype(float)
    found = win_rate(wins.tolist(), singles(1000), seed=0)
    assert found.low < 0.6 < found.high
    assert found.decisive
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.24 / 1000), rel=0.1)


def test_a_fair_coin_is_not_decisive() -> None:
    found = win_rate([0.0, 1.0] * 100, singles(200), seed=0)
    assert not found.decisive
    assert found.p_value == pytest.approx(1.0, abs=0.1)


def test_exchanged_scores_give_the_mirrored_interval() -> None:
    scores = np.random.default_rng(6).beta(2, 1, size=90)
    clusters = [f"p{place // 2}" for place in range(90)]
    one, other = (win_rate(given.tolist(), clusters, seed=9) for given in (scores, 1 - scores))
    assert other.win_rate == pytest.approx(1 - one.win_rate)
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low))
    assert (other.bootstrap_low, other.bootstrap_high) == pytest.approx((1 - one.bootstrap_high, 1 - one.bootstrap_low))
    assert (other.p_value, other.decisive) == (pytest.approx(one.p_value), one.decisive)


@pytest.mark.parametrize(("score", "count"), [(1.0, 40), (0.0, 40), (0.5, 40), (0.6, 25), (1.0, 1)])
def test_where_all_scores_are_equal_the_interval_is_wilsons(score: float, count: int) -> None:
    found = win_rate([score] * count, singles(count), seed=0)
    assert (found.low, found.high) == pytest.approx(wilson(score, count))
    assert found.high > found.low
    assert found.smallest_detectable > 0


def test_wilson_agrees_with_scipy() -> None:
    for wins, count in ((0, 10), (7, 10), (10, 10), (63, 150)):
        theirs = stats.binomtest(wins, count).proportion_ci(method="wilson")
        assert wilson(wins / count, count) == pytest.approx((theirs.low, theirs.high))


def test_winning_every_prompt_is_decisive_and_winning_one_of_one_is_not() -> None:
    assert win_rate([1.0] * 40, singles(40), seed=0).decisive
    assert win_rate([0.5] * 40, singles(40), seed=0).p_value == 1.0
    assert not win_rate([1.0], ["p"], seed=0).decisive
    assert not win_rate([1.0] * 40, ["p"] * 40, seed=0).decisive


def test_with_few_prompts_p_is_the_sign_flip_permutations() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.45, 0.95, 0.6, 0.3, 0.85, 0.75, 0.65])
    away = scores - 0.5
    exact = np.mean([abs(np.dot(signs, away)) >= abs(away.sum()) - 1e-12 for signs in product((-1, 1), repeat=10)])
    assert win_rate(scores.tolist(), singles(10), seed=0).p_value == exact


@pytest.mark.parametrize(("wins", "losses", "ties"), [(9, 2, 0), (14, 5, 3), (3, 3, 1), (20, 9, 0), (0, 12, 4)])
def test_of_few_certain_answers_p_is_the_exact_sign_test_without_the_ties(wins: int, losses: int, ties: int) -> None:
    scores = [1.0] * wins + [0.0] * losses + [0.5] * ties
    found = win_rate(scores, singles(len(scores)), seed=0)
    assert found.p_value == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-12)


def test_sign_flips_of_clusters_of_any_size_agree_with_every_one_of_them_counted() -> None:
    away = np.random.default_rng(13).normal(0.2, 1, size=13)
    exact = np.mean([abs(np.dot(signs, away)) >= abs(away.sum()) - 1e-12 for signs in product((-1, 1), repeat=13)])
    assert sign_flip_p(away) == exact


def test_with_many_prompts_p_agrees_with_the_t_test() -> None:
    scores = np.random.default_rng(8).normal(0.53, 0.15, size=200).clip(0, 1)
    found = win_rate(scores.tolist(), singles(200), seed=0)
    assert found.p_value == pytest.approx(stats.ttest_1samp(scores, 0.5).pvalue, abs=0.01)


def test_of_few_prompts_p_is_never_below_what_their_signs_can_show() -> None:
    assert win_rate([0.9, 0.95] * 6, singles(12), seed=0).p_value == 2 / 2**12


def test_the_smallest_detectable_difference_is_2_8_errors() -> None:
    # (1.96 + 0.84)^2 sigma^2 / delta^2: sigma 0.5 and 785 prompts show 5 points with 80 % power at 5 %.
    found = win_rate([0.0, 1.0] * 392 + [0.0], singles(785), seed=0)
    assert found.smallest_detectable == pytest.approx(0.05, abs=0.0001)


def test_a_difference_as_large_as_the_smallest_detectable_is_seen_four_times_in_five() -> None:
    random = np.random.default_rng(14)
    planted = 0.5 + win_rate([0.0, 1.0] * 50, singles(100), seed=0).smallest_detectable
    seen = sum(
        win_rate((random.uniform(size=100) < planted).astype(float).tolist(), singles(100), seed=run).decisive
        for run in range(200)
    )
    # Two standard errors are 6 %; scores away from one half scatter less than the formula thinks.
    assert 0.74 <= seen / 200 <= 0.9


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_the_same() -> None:
    scores = np.random.default_rng(9).uniform(size=100).tolist()
    first, again, other = (win_rate(scores, singles(100), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.006)


@pytest.mark.parametrize("scores", [[], [1.2], [-0.1], [float("nan")]])
def test_what_is_no_probability_is_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="scores"):
        win_rate(scores, singles(len(scores)), seed=0)


def test_scores_and_clusters_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        win_rate([0.1, 0.2], ["p"], seed=0)


def test_holm_by_pencil() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.20 times 4, 3, 2, 1, and never falling: 0.04, 0.06, 0.06, 0.20.
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_mean_without_spread_is_a_point() -> None:
    found = clustered_mean([0.0, 0.0], ["a", "b"], seed=0)
    assert (found.value, found.low, found.high, found.standard_error) == (0, 0, 0, 0)


def test_satterthwaites_degrees_by_pencil() -> None:
    # Two equal parts of 10 and 20 degrees: (1 + 1)^2 / (1/10 + 1/20) = 26.67; one part alone keeps its own.
    assert together((1, 10), (1, 20)) == pytest.approx((math.sqrt(2), 80 / 3))
    assert together((2, 7), (0, 3)) == pytest.approx((2, 7))
    assert together((0, 7), (0, 3)) == (0, 7)
