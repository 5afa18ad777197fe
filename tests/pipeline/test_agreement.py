"""Agreement, calibration and their intervals give the numbers of the papers, of SciPy and of paper and pencil."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from pipeline.agreement import (
    HOTTEST,
    Rater,
    agree,
    alpha_of,
    alpha_rows,
    auroc,
    brier,
    clustered,
    correlation_of,
    correlation_rows,
    credit,
    cross_fitted,
    expected_calibration_error,
    fit_temperature,
    kappa_of,
    kappa_rows,
    mean_of,
    mean_rows,
    says,
    temperature_interval,
)


def kappa(one: str, other: str) -> float:
    """Of two raters whose labels are written as a, b and t."""
    names = {"a": "a", "b": "b", "t": "tie"}
    rows = kappa_rows([names[label] for label in one], [names[label] for label in other])
    return float(kappa_of(rows.sum(axis=0)))


def alpha(*units: str) -> float:
    names = {"a": "a", "b": "b", "t": "tie"}
    return float(alpha_of(alpha_rows([[names[label] for label in unit] for unit in units]).sum(axis=0)))


# ---- between raters


def test_cohens_kappa_of_the_textbook_table() -> None:
    # 20 both yes, 5 and 10 split, 15 both no: observed 0.7, expected 0.5, kappa 0.4.
    one, other = "a" * 25 + "b" * 25, "a" * 20 + "b" * 5 + "a" * 10 + "b" * 15
    assert kappa(one, other) == pytest.approx(0.4)


def test_kappa_is_one_for_equal_raters_zero_for_independent_ones_and_negative_for_opposed_ones() -> None:
    assert kappa("aabt", "aabt") == 1.0
    assert kappa("aabb", "abab") == 0.0
    assert kappa("ab", "ba") == -1.0


def test_kappa_is_not_defined_where_both_raters_say_one_thing_only() -> None:
    assert math.isnan(kappa("aaa", "aaa"))
    assert clustered(kappa_rows(["a", "a"], ["a", "a"]), ["p", "q"], kappa_of) is None


def test_krippendorffs_alpha_of_three_raters_of_whom_one_is_inverted() -> None:
    # p1 aab, p2 bba, p3 aab, p4 b-a: the krippendorff package and a count by hand both give -1/3.
    assert alpha("aab", "bba", "aab", "ba") == pytest.approx(-1 / 3)


def test_krippendorffs_alpha_of_his_own_two_coder_example() -> None:
    # "Computing Krippendorff's Alpha-Reliability" (2011), example A: 14 zeros, 6 ones and 4 disagreements in 10 units,
    # 1 - 19 * 4 / (14 * 6) = 0.095.
    meg, owen = "babbbbbbab", "aaabbabbbb"
    assert alpha(*(x + y for x, y in zip(meg, owen, strict=True))) == pytest.approx(0.095, abs=5e-4)


def test_a_pair_that_one_rater_saw_adds_nothing_to_alpha() -> None:
    assert alpha("aa", "bb", "ab", "a", "") == alpha("aa", "bb", "ab")


def test_error_correlation_is_pearsons() -> None:
    x, y = [1.0, 0.0, 1.0, 1.0, 0.0, 0.5], [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    found = float(correlation_of(correlation_rows(x, y).sum(axis=0)))
    assert found == pytest.approx(stats.pearsonr(x, y).statistic)
    assert math.isnan(float(correlation_of(correlation_rows([1.0, 1.0], [0.0, 1.0]).sum(axis=0))))


def test_a_probability_near_one_half_is_a_tie_and_exactly_one_half_is_half_right() -> None:
    assert [says(p) for p in (0.449, 0.46, 0.5, 0.54, 0.551)] == ["b", "tie", "tie", "tie", "a"]
    assert [credit(p, "a") for p in (0.0, 0.5, 0.51)] == [0.0, 0.5, 1.0]
    assert [credit(p, "b") for p in (0.0, 0.5, 0.51)] == [1.0, 0.5, 0.0]


# ---- intervals


def test_the_interval_of_a_mean_is_as_wide_as_scipys_bootstrap() -> None:
    values = np.random.default_rng(3).uniform(size=120)
    found = clustered(mean_rows(values.tolist()), [str(n) for n in range(120)], mean_of)
    assert found is not None
    wanted = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", random_state=0)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval), abs=0.004)
    assert found.value == pytest.approx(values.mean())


def test_answers_to_one_prompt_stand_or_fall_together() -> None:
    # Four copies of each value are no more evidence than one.
    values = np.random.default_rng(4).uniform(size=50)
    alone = clustered(mean_rows(values.tolist()), [str(n) for n in range(50)], mean_of)
    copied = clustered(mean_rows(np.repeat(values, 4).tolist()), [str(n) for n in np.repeat(range(50), 4)], mean_of)
    assert alone is not None and copied is not None
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert (copied.n, copied.n_clusters) == (200, 50)


def test_nothing_asked_has_no_interval() -> None:
    assert clustered(np.zeros((0, 2)), [], mean_of) is None


# ---- confidence


def test_brier_and_calibration_error_by_hand() -> None:
    p, t = [0.9, 0.9, 0.3, 0.5], [1.0, 0.0, 0.0, 0.5]
    assert brier(p, t) == pytest.approx((0.01 + 0.81 + 0.09 + 0) / 4)
    # Confidence 0.9 twice, half of it right: 2 x 0.4. Confidence 0.7, right: 0.3. Confidence 0.5 of a tie: 0.
    assert expected_calibration_error(p, t) == pytest.approx((2 * 0.4 + 0.3) / 4)


def test_calibration_error_does_not_turn_on_the_sides() -> None:
    random = np.random.default_rng(0)
    p, t = random.uniform(size=300), random.choice([0.0, 0.5, 1.0], size=300)
    there, back = (expected_calibration_error(*each) for each in ((p, t), (1 - p, 1 - t)))
    assert there == pytest.approx(back)


def test_auroc_is_mann_whitneys_u_over_all_couples() -> None:
    random = np.random.default_rng(1)
    score, right = random.integers(0, 9, size=80).tolist(), random.uniform(size=80) < 0.6
    good = [each for each, is_right in zip(score, right, strict=True) if is_right]
    bad = [each for each, is_right in zip(score, right, strict=True) if not is_right]
    wanted = stats.mannwhitneyu(good, bad).statistic / len(good) / len(bad)
    assert auroc(score, right.tolist()) == pytest.approx(wanted)
    assert auroc([1.0, 2.0], [True, True]) is None


def test_the_temperature_is_the_one_that_scipy_finds() -> None:
    random = np.random.default_rng(2)
    z = random.normal(scale=4, size=400)
    t = np.where(random.uniform(size=400) < 1 / (1 + np.exp(-z / 2.5)), 1.0, 0.0)
    t[:20] = 0.5

    smoothed = np.where(t == 0.5, 0.5, np.where(t == 1, 381 / 382, 1 / 382))  # 380 of 400 are decided

    def nll(temperature: float) -> float:
        x = z / temperature
        return float((np.logaddexp(0, x) - smoothed * x).sum())

    wanted = optimize.minimize_scalar(nll, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(z.tolist(), t.tolist()) == pytest.approx(wanted, rel=1e-5)


def test_a_boastful_judges_temperature_is_how_much_it_boasts() -> None:
    # Right with the probability sigmoid(z / 3), where it says sigmoid(z): 2,000 answers give 3 within a tenth.
    random = np.random.default_rng(5)
    z = random.normal(scale=5, size=2000)
    t = (random.uniform(size=2000) < 1 / (1 + np.exp(-z / 3))).astype(float)
    assert fit_temperature(z.tolist(), t.tolist()) == pytest.approx(3, rel=0.1)


def test_how_far_a_judge_is_to_be_trusted_is_not_seen_on_pairs_that_people_were_shown_for_its_doubt() -> None:
    # Of four pairs the judge is sure and right in two, which were drawn at random, and unsure of the other two.
    p = {"1": 0.9, "2": 0.1, "3": 0.5, "4": 0.5}
    people = {"1": "a", "2": "b", "3": "a", "4": "b"}
    prompts = {name: name for name in p}
    rater = Rater(name="judge", p=p, asked=4)
    everything = agree([rater], prompts, people)
    drawn = agree([rater], prompts, people, doubted={"3", "4"})
    assert everything.trust["judge"].value == pytest.approx((0.9 + 0.9 + 0.5 + 0.5) / 4)
    assert drawn.trust["judge"].value == pytest.approx(0.9)
    assert drawn.accuracy == everything.accuracy
    assert agree([rater], prompts, people, doubted=set(p)).trust == {}


def test_a_judge_that_is_wrong_more_often_than_right_is_made_as_unsure_as_can_be() -> None:
    assert fit_temperature([1.0, 1.0, -1.0], [0.0, 0.0, 1.0]) == HOTTEST
    assert fit_temperature([0.0, 0.0], [1.0, 0.0]) == HOTTEST


def test_a_judge_that_was_always_right_is_not_thereby_sure_of_everything() -> None:
    # Five of five at one nat: sigmoid(1 / T) = 6 / 7, so T = 1 / log 6. The tie and the undecided count for nothing.
    found = fit_temperature([1.0, 1.0, 1.0, -1.0, -1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    assert found == pytest.approx(1 / math.log(6), rel=1e-6)


def test_a_temperatures_interval_is_that_of_a_plain_bootstrap_over_prompts() -> None:
    # In float64 by scipy, one resample after the other, from random numbers of its own. Targets are as sure as a judge
    # is, and answers to one prompt are alike.
    random = np.random.default_rng(7)
    prompt = np.repeat(np.arange(40), 3)
    z = np.repeat(random.normal(scale=3, size=40), 3) + random.normal(size=120)
    t = 1 / (1 + np.exp(-z / 2 + np.repeat(random.normal(scale=0.7, size=40), 3)))

    def fitted(chosen: np.ndarray) -> float:
        shrunk = 0.5 + (t[chosen] - 0.5) * len(chosen) / (len(chosen) + 2)

        def nll(temperature: float) -> float:
            x = z[chosen] / temperature
            return float((np.logaddexp(0, x) - shrunk * x).sum())

        return float(optimize.minimize_scalar(nll, bounds=(0.05, 50), method="bounded").x)

    drawn = [np.concatenate([np.arange(3) + 3 * p for p in random.integers(40, size=40)]) for _ in range(1000)]
    wanted = np.quantile([fitted(each) for each in drawn], [0.025, 0.975])
    names = [str(each) for each in prompt]
    value, low, high = temperature_interval(z.tolist(), t.tolist(), names, seed=1)
    assert value == pytest.approx(fitted(np.arange(120)), rel=1e-4)
    # Two bootstraps of 1,000 differ by about a fifteenth of the width at either end.
    assert (low, high) == pytest.approx(wanted.tolist(), abs=(wanted[1] - wanted[0]) / 8)
    # Had answers been resampled and not prompts, it would be narrower than that allows.
    _, *alone = temperature_interval(z.tolist(), t.tolist(), [str(n) for n in range(120)], seed=1)
    assert alone[1] - alone[0] < 0.8 * (high - low)


def test_the_temperature_of_one_that_is_wrong_more_often_than_right_has_no_end_that_could_be_told() -> None:
    value, low, high = temperature_interval([1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 1.0, 1.0], ["1", "2", "3", "4"])
    assert (value, high) == (HOTTEST, HOTTEST)
    # The tail of four clusters is sqrt(4 / 3) of Student's t with 3 degrees, 3.67 deviations or 1 in 8,000. Four
    # resampled are all right in 1 of 256 cases: their target, drawn towards one half, is 5 / 6 = sigmoid(1 / T).
    assert low == pytest.approx(1 / math.log(5))


def test_cross_fitting_never_looks_at_the_prompt_it_calibrates() -> None:
    random = np.random.default_rng(6)
    z = random.normal(scale=3, size=200)
    t = (random.uniform(size=200) < 1 / (1 + np.exp(-z))).astype(float)
    clusters = [str(n // 2) for n in range(200)]
    before = cross_fitted(z.tolist(), t.tolist(), clusters)
    t[0] = 1 - t[0]  # what people said of prompt 0
    after = cross_fitted(z.tolist(), t.tolist(), clusters)
    assert after[:2] == before[:2]
    assert after != before
