"""A mean over prompts with its interval, whether it differs from one half, and what that says among others.

The interval of a win rate is Wilson's, with as many trials as independent prompts would give the same standard error,
and with Student's t for the normal deviate (the effective sample size is Korn and Graubard's, 1998; Dean and Pagano
2015 compare such intervals). It stays inside [0, 1], is the mirror of that of the exchanged scores, and covers what it
claims near the edges too, where plus and minus t errors does not. It falls short where few prompts have unsure and
skewed scores (93 % at 12 or 20 prompts and a rate of 0.74), and is wide where one certain answer a prompt leaves few
possible rates (98 % at 12 prompts). The percentile bootstrap stands beside it as a second opinion, its tails widened by
what resampling loses (Hesterberg 2015, arXiv:1411.5279).

The p-value is that of the same interval, and below `FEW_CLUSTERS` prompts of an exact test that needs no distribution.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Record

RESAMPLES = 5000
"""Of the bootstrap. The 2.5 % point moves by about 2 % of the interval between seeds."""
FEW_CLUSTERS = 30
"""Below this many prompts p is that of all sign flips, 2 to the power of the prompts."""
POWER = 0.8
"""How surely the smallest detectable difference would have been detected."""

ROUNDING = 1e-12
"""Means closer than this are equal: exchanging the sides must not turn on the last bit."""

_CHUNK = 100  # resamples drawn at once: bounds memory at 100 x prompts, and divides RESAMPLES

Floats = NDArray[np.float64]


class Estimate(Record):
    """A mean with its interval over prompts, in the unit of what was averaged."""

    value: float
    low: float
    high: float
    standard_error: float
    n: int
    n_clusters: int


class WinRate(Record):
    """P(candidate better) over held-out prompts, as a share of 1, with what it takes to doubt it."""

    win_rate: float
    low: float
    high: float
    standard_error: float
    """Over prompts, with the finite-cluster factor G/(G-1)."""
    n: int
    """Answers of the judge that were counted."""
    n_clusters: int
    """Prompts they came from."""
    p_value: float
    """Two-sided, against 50 %."""
    smallest_detectable: float
    """Distance from 50 % that a sample like this would have called decisive `POWER` of the time."""
    decisive: bool
    """The interval excludes 50 %, and the p-value agrees."""
    bootstrap_low: float
    """The same interval by resampling prompts, which assumes no distribution."""
    bootstrap_high: float


def win_rate(scores: Sequence[float], clusters: Sequence[str], *, confidence: float = 0.95, seed: int) -> WinRate:
    """The mean score with its prompt-clustered interval.

    Args:
        scores: P(candidate better) in [0, 1], a tie 0.5. Abstentions are not among them.
        clusters: the prompt of each score.
        seed: of the bootstrap; the same prompts are drawn for the exchanged scores `1 - s`.

    Where no prompt differs from another (one prompt, or all won) the spread is unknown, and the interval is Wilson's
    with one trial per prompt.
    """
    if not scores or not all(0 <= score <= 1 for score in scores):
        raise ValueError(f"scores must be some numbers in [0, 1], not {list(scores[:5])}")
    sums, sizes = by_cluster(scores, clusters)
    value, error, groups = float(sums.sum() / sizes.sum()), standard_error(sums, sizes), len(sums)
    low, high = score_interval(value, error, groups - 1, confidence)
    bootstrap_low, bootstrap_high, exact = low, high, groups < FEW_CLUSTERS
    if error >= ROUNDING:
        bootstrap_low, bootstrap_high = _percentile_interval(sums, sizes, confidence, seed)
    else:
        # The spread that was seen is none, which is no proof that there is none: take Wilson's.
        error, exact = (high - low) / (2 * _z((1 + confidence) / 2)), True
    p_value = sign_flip_p(sums - sizes / 2) if exact else score_p(value, error, groups - 1)
    return WinRate(
        win_rate=value,
        low=low,
        high=high,
        standard_error=error,
        n=len(scores),
        n_clusters=groups,
        p_value=p_value,
        smallest_detectable=detectable(error, groups - 1, confidence),
        decisive=excludes_half(low, high) and p_value < 1 - confidence,
        bootstrap_low=bootstrap_low,
        bootstrap_high=bootstrap_high,
    )


def share(values: Sequence[float], clusters: Sequence[str], *, confidence: float = 0.95, seed: int) -> Estimate:
    """`win_rate` of values that are no contest, only numbers in [0, 1]."""
    found = win_rate(values, clusters, confidence=confidence, seed=seed)
    return Estimate(
        value=found.win_rate,
        low=found.low,
        high=found.high,
        standard_error=found.standard_error,
        n=found.n,
        n_clusters=found.n_clusters,
    )


def clustered_mean(
    values: Sequence[float], clusters: Sequence[str], *, confidence: float = 0.95, seed: int
) -> Estimate:
    """The mean of any numbers with the bootstrap's interval. With one prompt, or no spread, it is the point."""
    return ratio(*by_cluster(values, clusters), confidence=confidence, seed=seed)


def ratio(sums: Floats, sizes: Floats, *, confidence: float = 0.95, seed: int) -> Estimate:
    """The mean of what clusters have so many of, (G,), by its sum in each, (G,): with the interval of the bootstrap."""
    value, error = float(sums.sum() / sizes.sum()), standard_error(sums, sizes)
    low, high = (value, value)
    if error > 0:
        low, high = _percentile_interval(sums, sizes, confidence, seed)
    count = round(float(sizes.sum()))
    return Estimate(value=value, low=low, high=high, standard_error=error, n=count, n_clusters=len(sums))


# ---- intervals


def wilson(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share of n trials (Wilson 1927): never empty, never outside [0, 1]."""
    return _wilson(share, n, _z((1 + confidence) / 2))


def score_interval(share: float, error: float, degrees: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share that has this standard error, with so many degrees of freedom.

    The trials are share (1 - share) / error^2, those of a binomial with the same error. Without any spread it is
    Wilson's own with degrees + 1 trials.
    """
    if error < ROUNDING or not 0 < share < 1:
        return wilson(share, degrees + 1, confidence)
    return _wilson(share, share * (1 - share) / error**2, t_quantile((1 + confidence) / 2, degrees))


def score_p(share: float, error: float, degrees: float) -> float:
    """Two-sided p against one half: one minus the confidence at which `score_interval` just touches it."""
    from scipy.special import stdtr  # see t_quantile

    t = abs(share - 0.5) * math.sqrt(4 * share * (1 - share)) / error
    return float(2 * stdtr(degrees, -t))


def sign_flip_p(deviations: Floats) -> float:
    """Two-sided permutation p, exact: were the two equal, each cluster's distance from one half had any sign.

    With one won or lost answer a cluster it is the exact sign test. The 2^G sums are counted as all sums of one half
    of the clusters against the sorted sums of the other, so that 29 clusters take milliseconds.
    """
    observed, moving = abs(float(deviations.sum())), deviations[np.abs(deviations) > ROUNDING]
    if observed <= ROUNDING or not len(moving):
        return 1.0
    if np.ptp(np.sign(moving)) == 0:
        return float(2.0 ** (1 - len(moving)))  # only all signs as they are, or all turned, go as far
    half = len(moving) // 2
    one, other = _signed_sums(moving[:half]), np.sort(_signed_sums(moving[half:]))
    as_large = len(other) * len(one) - np.searchsorted(other, observed - ROUNDING - one, side="left").sum()
    return float(min(1.0, 2 * as_large / (len(one) * len(other))))


def detectable(error: float, degrees: float, confidence: float = 0.95, comparisons: int = 1) -> float:
    """Distance from one half that is called decisive `POWER` of the time, with this standard error.

    Among several comparisons it is that of the first step of Holm's correction, where the level is shared by all: the
    only step that does not hang on what the others show.
    """
    level = (1 - confidence) / comparisons
    return (t_quantile(1 - level / 2, degrees) + t_quantile(POWER, degrees)) * error


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given: all claims at once are right with the stated confidence."""
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


def excludes_half(low: float, high: float) -> bool:
    """True if the interval does not hold one half."""
    return low > 0.5 + ROUNDING or high < 0.5 - ROUNDING


# ---- what the other files build on


def by_cluster(values: Sequence[float], clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum and number of the values of each cluster, ordered by the cluster's name."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters")
    index, groups = cluster_index(clusters)
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=groups)
    return sums.astype(np.float64), np.bincount(index, minlength=groups).astype(np.float64)


def cluster_index(clusters: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """The number of each row's cluster, in the order of the names, and how many clusters there are."""
    number = {name: place for place, name in enumerate(sorted(set(clusters)))}
    return np.array([number[name] for name in clusters], dtype=np.int64), len(number)


def standard_error(sums: Floats, sizes: Floats) -> float:
    """sqrt(G/(G-1) * sum_g (sum_{i in g} (s_i - mean))^2) / n; 0 for one cluster."""
    return spread(sums - sizes * (sums.sum() / sizes.sum())) / float(sizes.sum())


def spread(influences: Floats) -> float:
    """sqrt(G/(G-1) * sum_g u_g^2), the standard error of a statistic that each cluster moves by u_g; 0 for one."""
    groups = len(influences)
    return float(math.sqrt(groups / (groups - 1) * (influences @ influences))) if groups > 1 else 0.0


def together(*parts: tuple[float, float]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum of independent parts (Satterthwaite 1946).

    Args:
        parts: standard error and degrees of freedom of each. Without any spread the first's degrees are returned.
    """
    total = sum(error**2 for error, _ in parts)
    weighed = sum(error**4 / max(degrees, 1) for error, degrees in parts)
    return math.sqrt(total), total**2 / weighed if weighed else parts[0][1]


def t_quantile(probability: float, degrees: float) -> float:
    """Student's t; the normal deviate where there are no degrees of freedom to speak of."""
    if degrees < 1:
        return _z(probability)
    # Here and not above: SciPy takes a fifth of a second to load, which only who computes an interval should wait for.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def tails(confidence: float, groups: int) -> tuple[float, float]:
    """The two shares at which a percentile bootstrap over so many clusters is cut: the expanded ones of Hesterberg.

    Resampling takes the spread for sqrt((G-1)/G) of what it is, and knows no t: both are made good.
    """
    groups = max(groups, 2)
    out = math.sqrt(groups / (groups - 1)) * t_quantile((1 + confidence) / 2, groups - 1)
    return NormalDist().cdf(-out), NormalDist().cdf(out)


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _percentile_interval(sums: Floats, sizes: Floats, confidence: float, seed: int) -> tuple[float, float]:
    low, high = np.quantile(_resampled_means(sums, sizes, seed), tails(confidence, len(sums)))
    return float(low), float(high)


def _resampled_means(sums: Floats, sizes: Floats, seed: int) -> Floats:
    """`RESAMPLES` means, each over as many clusters as there are, drawn with replacement."""
    random, groups = np.random.default_rng(seed), len(sums)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _CHUNK):
        drawn = random.integers(groups, size=(_CHUNK, groups))
        means[start : start + _CHUNK] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _signed_sums(values: Floats) -> Floats:
    """The sums of the values with every choice of signs, 2^n of them."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)
