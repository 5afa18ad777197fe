"""What people would say: the worked numbers of the two corrections, what was planted, and what cannot be known."""

import numpy as np
import pytest

from pipeline.statistics.judge_error import Corrected, prediction_powered, rogan_gladen
from pipeline.statistics.win_rate import Estimate, WinRate, win_rate


def singles(count: int) -> list[str]:
    return [f"p{place}" for place in range(count)]


def rate_of(value: float, error: float, prompts: int = 10_000) -> WinRate:
    return WinRate(
        win_rate=value, low=0, high=1, standard_error=error, n=prompts, n_clusters=prompts, p_value=1,
        smallest_detectable=1, decisive=False, bootstrap_low=0, bootstrap_high=1,
    )  # fmt: skip


def trust_of(value: float, error: float, prompts: int = 10_000) -> Estimate:
    return Estimate(value=value, low=0, high=1, standard_error=error, n=prompts, n_clusters=prompts)


def bounds(found: Corrected) -> tuple[float | None, float | None]:
    return (found.low, found.high)


# --- prediction-powered


def voted(
    seed: int, prompts: int, labels: int, rate: float, a: float, b: float
) -> tuple[list[float], dict[int, float]]:
    """Scores of a judge that says `one` with probability a where people do, and b where they do not; their labels."""
    random = np.random.default_rng(seed)
    people = random.uniform(size=prompts) < rate
    said = random.uniform(size=prompts) < np.where(people, a, b)
    chosen = random.choice(prompts, size=labels, replace=False)
    return said.astype(float).tolist(), {int(place): float(people[place]) for place in chosen}


def test_lambda_and_the_estimate_by_pencil() -> None:
    # f is right on 16 of 20 labelled prompts (8 of 10 wins, 8 of 10 losses), and says `one` on 15 of 20 others.
    f = [1.0] * 8 + [0.0] * 2 + [0.0] * 8 + [1.0] * 2 + [1.0] * 15 + [0.0] * 5
    labels = {place: float(place < 10) for place in range(20)}
    found = prediction_powered("j", "one", "other", f, labels, singles(40))
    # A prompt moves mean(y) by A = (y - 1/2) / 20, and the gap by B = (f - 1/2) / 20 - (f - 5/8) / 40, as the mean of
    # all f is 5/8; who is not labelled has only B's last term. lambda = sum AB / sum BB.
    a = np.array([0.025] * 10 + [-0.025] * 10 + [0.0] * 20)
    g = np.array(f)
    b = np.where(np.arange(40) < 20, (g - 0.5) / 20, 0) - (g - 0.625) / 40
    reliance = float(a @ b / (b @ b))
    assert found.reliance == pytest.approx(reliance)
    # mean(y) - lambda (mean of the labelled f - mean of all f) = 1/2 + lambda / 8.
    assert found.win_rate == pytest.approx(0.5 + reliance / 8)
    assert found.labels == 20


def test_lambda_is_that_of_the_paper_where_labelled_and_other_prompts_are_apart() -> None:
    # arXiv:2311.01453: cov(y, f) / ((1 + n/N) var(f)) with N other prompts, here 4000. Their means are the gap there;
    # here it is that to the mean over all, which is (1 - 2000/6000) of it, and lambda is as much larger.
    f, labels = voted(1, 6000, 2000, 0.6, 0.85, 0.25)
    found = prediction_powered("j", "one", "other", f, labels, singles(6000))
    places = sorted(labels)
    y, g = np.array([labels[place] for place in places]), np.array(f)[places]
    theirs = np.cov(y, g)[0, 1] / ((1 + 2000 / 4000) * np.var(f))
    assert found.reliance == pytest.approx(theirs / (1 - 2000 / 6000), rel=0.05)


def test_a_judge_that_errs_towards_one_side_is_put_right() -> None:
    # It says `one` in 95 % of its wins and in 60 % of its losses: 0.95 * 0.4 + 0.6 * 0.6 = 74 % for a true 40 %.
    f, labels = voted(2, 4000, 1000, 0.4, 0.95, 0.6)
    found = prediction_powered("j", "one", "other", f, labels, singles(4000))
    assert np.mean(f) == pytest.approx(0.74, abs=0.03)
    assert found.low is not None and found.high is not None
    assert found.low < 0.4 < found.high
    assert found.high - found.low < 0.06


def test_a_good_judge_narrows_what_the_labels_alone_would_say_and_a_useless_one_does_no_harm() -> None:
    for accuracy, least, most in ((0.95, 0.3, 0.75), (0.5, 0.9, 1.1)):
        f, labels = voted(3, 4000, 200, 0.6, accuracy, 1 - accuracy)
        places = sorted(labels)
        alone = win_rate([labels[place] for place in places], [f"p{place}" for place in places], seed=0)
        found = prediction_powered("j", "one", "other", f, labels, singles(4000))
        assert found.low is not None and found.high is not None
        assert least < (found.high - found.low) / (alone.high - alone.low) < most


def test_where_people_voted_on_everything_they_decide() -> None:
    f, labels = voted(4, 100, 100, 0.6, 0.7, 0.3)
    found = prediction_powered("j", "one", "other", f, labels, singles(100))
    theirs = win_rate([labels[place] for place in range(100)], singles(100), seed=0)
    assert (found.win_rate, found.reliance) == (pytest.approx(theirs.win_rate), 0.0)
    assert bounds(found) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_a_handful_of_votes_is_not_enough() -> None:
    f, labels = voted(5, 100, 19, 0.6, 0.9, 0.1)
    found = prediction_powered("j", "one", "other", f, labels, singles(100))
    assert (found.win_rate, found.low, found.high) == (None, None, None)
    assert found.not_identified == "people labelled answers to 19 of these prompts, and 20 are needed"


# --- Rogan-Gladen


def test_the_correction_by_pencil() -> None:
    # A judge that is right in 80 % shows 0.56 for a true 0.60: (0.56 - 0.2) / 0.6.
    found = rogan_gladen("j", "one", "other", rate_of(0.56, 0.0), trust_of(0.8, 0.0))
    assert (found.win_rate, found.low, found.high, found.reliance) == pytest.approx((0.6, 0.6, 0.6, 0.6))


def test_a_judge_that_is_never_wrong_changes_nothing() -> None:
    found = rogan_gladen("j", "one", "other", rate_of(0.63, 0.02), trust_of(1.0, 0.0))
    assert (found.win_rate, found.low, found.high) == pytest.approx((0.63, 0.63 - 0.0392, 0.63 + 0.0392), abs=1e-4)


def test_with_small_errors_fiellers_interval_is_the_delta_methods() -> None:
    # u = 0.06 / 0.6; var(u) = (0.002^2 + 0.1^2 * (2 * 0.003)^2) / 0.6^2.
    found = rogan_gladen("j", "one", "other", rate_of(0.56, 0.002), trust_of(0.8, 0.003))
    reach = 1.96 * np.sqrt(0.002**2 + 0.1**2 * 0.006**2) / 0.6
    assert bounds(found) == pytest.approx((0.6 - reach, 0.6 + reach), abs=1e-4)


def test_a_difference_is_seen_where_it_was_seen_before_and_nowhere_else() -> None:
    # Whatever the accuracy, one half stays one half.
    for value in (0.5, 0.52, 0.54, 0.56):
        raw = abs(value - 0.5) > 1.9602 * 0.02
        found = rogan_gladen("j", "one", "other", rate_of(value, 0.02), trust_of(0.7, 0.02))
        assert found.low is not None
        assert (found.low > 0.5) == raw


def test_it_stays_a_share() -> None:
    found = rogan_gladen("j", "one", "other", rate_of(0.95, 0.01), trust_of(0.8, 0.02))
    assert (found.win_rate, found.high) == (1.0, 1.0)


@pytest.mark.parametrize(("a", "error"), [(0.52, 0.02), (0.5, 0.0), (0.3, 0.01)])
def test_a_judge_that_may_be_no_better_than_chance_corrects_nothing(a: float, error: float) -> None:
    found = rogan_gladen("j", "one", "other", rate_of(0.56, 0.01), trust_of(a, error))
    assert (found.win_rate, found.low, found.high) == (None, None, None)
    assert found.not_identified == "the judge may be right no more often than chance where people decided"
