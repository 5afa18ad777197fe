"""How far a judge agrees with people, with other judges and with itself: pure functions on numbers.

A judge gives p, the probability that `a` is better; a person gives one of `a`, `b` and `tie`. A probability within
`TIE` of one half counts as a tie where classes are compared, and as one half of a right answer where accuracy is.
Intervals resample prompts, as in `pipeline.statistics`, and every statistic is recomputed for each resample.

What is left out: which questions are asked (`judges.exam`), and reading the verdicts of runs (`pipeline.cli_judge`).
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.records import Record, seed_of
from pipeline.statistics.win_rate import RESAMPLES, Estimate, share, tails

LABELS = ("a", "b", "tie")
"""What a rater can say of a pair."""

TARGETS = {"a": 1.0, "b": 0.0, "tie": 0.5}
"""The p that says the same."""

PEOPLE = "people"
"""What they are called among raters."""

TIE = 0.05
"""Distance from one half within which a probability says `tie`."""

VERSION = 3
"""Raised when a change of this file changes how far judges are said to agree."""

FOLDS = 5
"""Parts of the cross-fitting: each is calibrated by what the others say."""

_CHUNK = 100  # resamples drawn at once; divides RESAMPLES and REFITS

REFITS = 1000
"""Resamples for which a temperature is fitted anew, which takes longer than adding sums up."""

HOTTEST = 100.0
"""Bounds of a temperature, and of its inverse: a judge that knows nothing would have an infinite one."""

Floats = NDArray[np.float64]


def says(p: float) -> str:
    """The label that a probability amounts to."""
    if abs(p - 0.5) <= TIE:
        return "tie"
    return "a" if p > 0.5 else "b"


def credit(p: float, label: str) -> float:
    """1 for the right side, 0 for the wrong one, one half where p says neither; `label` is a or b."""
    if p == 0.5:
        return 0.5
    return float((p > 0.5) == (label == "a"))


def given(p: float, label: str) -> float:
    """The probability that p gives to the right side; `label` is a or b."""
    return p if label == "a" else 1.0 - p


# ---- with an interval over prompts


def clustered(
    rows_NK: Floats,
    clusters: Sequence[str],
    statistic: Callable[[Floats], Floats],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """A statistic of sums with its bootstrap over clusters (`tails`). None: it is not defined for these rows.

    Args:
        rows_NK: what each of N observations adds to K sums.
        clusters: the prompt of each observation.
        statistic: sums of shape (..., K) -> values of shape (...); NaN where it is not defined.
    """
    if len(rows_NK) == 0:
        return None
    names, index = np.unique(np.asarray(clusters, dtype=object), return_inverse=True)
    sums_GK = np.zeros((len(names), rows_NK.shape[1]))
    np.add.at(sums_GK, index, rows_NK)
    value = float(statistic(sums_GK.sum(axis=0)))
    if not math.isfinite(value):
        return None
    values_R = np.concatenate([statistic(each) for each in _resampled(sums_GK, seed)])
    # A resample in which the statistic is not defined (one class only) says nothing about its spread.
    values_R = np.append(values_R[np.isfinite(values_R)], value)
    low, high = np.quantile(values_R, tails(confidence, len(names)))
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        standard_error=float(values_R.std()),
        n=len(rows_NK),
        n_clusters=len(names),
    )


def _resampled(sums_GK: Floats, seed: int) -> Iterator[Floats]:
    """`RESAMPLES` sums over as many clusters as there are, drawn with replacement, some at a time to bound memory."""
    random, groups = np.random.default_rng(seed_of("clustered", seed)), len(sums_GK)
    for _ in range(0, RESAMPLES, _CHUNK):
        yield random.multinomial(groups, np.full(groups, 1 / groups), size=_CHUNK) @ sums_GK


def kappa_of(counts: Floats) -> Floats:
    """Cohen's kappa (1960) of tables flattened to (..., L * L): (observed - expected) / (1 - expected) agreement."""
    size = math.isqrt(counts.shape[-1])
    table = counts.reshape(*counts.shape[:-1], size, size)
    total = table.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(table, axis1=-2, axis2=-1) / total
        expected = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1) / total**2
        found: Floats = (observed - expected) / (1 - expected)
    return found


def alpha_of(coincidences: Floats) -> Floats:
    """Krippendorff's alpha (nominal) of coincidence matrices flattened to (..., L * L).

    1 - (n - 1) sum_{c != k} o_ck / sum_{c != k} n_c n_k (Krippendorff 2011, Computing Alpha-Reliability).
    """
    size = math.isqrt(coincidences.shape[-1])
    table = coincidences.reshape(*coincidences.shape[:-1], size, size)
    each = table.sum(axis=-1)
    total = each.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        disagreement = total - np.trace(table, axis1=-2, axis2=-1)
        expected = total**2 - (each**2).sum(axis=-1)
        found: Floats = 1 - (total - 1) * disagreement / expected
    return found


def correlation_of(sums: Floats) -> Floats:
    """Pearson's correlation from (..., 6) sums of 1, x, y, xx, yy, xy."""
    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Spread that is nothing but rounding is none.
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        found = (n * xy - x * y) / np.sqrt(np.where((spread_x > 1e-9) & (spread_y > 1e-9), spread_x * spread_y, np.nan))
    return np.asarray(found)


def mean_of(sums: Floats) -> Floats:
    """The mean from (..., 2) sums of 1 and x."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 1] / sums[..., 0])


def kappa_rows(one: Sequence[str], other: Sequence[str]) -> Floats:
    """What each pair adds to the table of two raters: (N, 9), for `kappa_of`."""
    rows = np.zeros((len(one), len(LABELS) ** 2))
    for place, both in enumerate(zip(one, other, strict=True)):
        rows[place, LABELS.index(both[0]) * len(LABELS) + LABELS.index(both[1])] = 1
    return rows


def alpha_rows(units: Sequence[Sequence[str]]) -> Floats:
    """What each pair adds to the coincidences: (N, 9), for `alpha_of`. A pair that one rater saw adds nothing.

    Args:
        units: the labels that each pair was given, by any number of raters.
    """
    rows = np.zeros((len(units), len(LABELS), len(LABELS)))
    for place, given in enumerate(units):
        counts = np.array([given.count(label) for label in LABELS], dtype=np.float64)
        if counts.sum() > 1:
            rows[place] = (np.outer(counts, counts) - np.diag(counts)) / (counts.sum() - 1)
    return rows.reshape(len(units), len(LABELS) ** 2)


def correlation_rows(x: Sequence[float], y: Sequence[float]) -> Floats:
    """What each pair adds to the sums of `correlation_of`: (N, 6)."""
    x_N, y_N = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return np.stack([np.ones_like(x_N), x_N, y_N, x_N**2, y_N**2, x_N * y_N], axis=-1)


def mean_rows(values: Sequence[float]) -> Floats:
    """What each pair adds to the sums of `mean_of`: (N, 2)."""
    return np.stack([np.ones(len(values)), np.asarray(values, dtype=np.float64)], axis=-1)


# ---- confidence


def brier(p: Sequence[float], targets: Sequence[float]) -> float:
    """Mean of (p - target)^2 (Brier 1950). Always one half scores 0.25 where there are no ties."""
    return float(np.mean((np.asarray(p) - np.asarray(targets)) ** 2))


def expected_calibration_error(p: Sequence[float], targets: Sequence[float], bins: int = 10) -> float:
    """Mean distance, over answers, of the stated confidence from the share that was right (Guo et al. 2017, eq. 3).

    The confidence is that of the side preferred, max(p, 1 - p), in bins of equal width from 0.5 to 1.
    """
    p_N, t_N = np.asarray(p, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    confidence = np.maximum(p_N, 1 - p_N)
    right = np.where(p_N >= 0.5, t_N, 1 - t_N)
    right = np.where(p_N == 0.5, 0.5, right)
    place = np.minimum((2 * bins * (confidence - 0.5) + 1e-9).astype(int), bins - 1)
    gaps = [abs((confidence - right)[place == index].sum()) for index in range(bins)]
    return float(sum(gaps) / len(p_N))


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """Probability that a right answer has a higher score than a wrong one, equal scores one half (Mann-Whitney).

    None where all answers are right, or all wrong.
    """
    score_N, right_N = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=bool)
    good, bad = score_N[right_N], np.sort(score_N[~right_N])
    if not len(good) or not len(bad):
        return None
    below, not_above = np.searchsorted(bad, good, side="left"), np.searchsorted(bad, good, side="right")
    return float((below + not_above).mean() / 2 / len(bad))


def fit_temperature(logits: Sequence[float], targets: Sequence[float]) -> float:
    """The T that minimises the negative log-likelihood of the targets under sigmoid(logit / T) (Guo et al. 2017).

    Targets of N decided answers are drawn towards one half, 1 to (N + 1) / (N + 2), as Platt (1999) does: a judge that
    was right five times in five is not thereby sure of everything. The likelihood is convex in 1 / T, so the zero of
    its slope is found by halving. Where there is none, as for a judge that is wrong more often than right, T is the
    nearest bound: `HOTTEST`, or 1 / `HOTTEST`.
    """
    z_N, t_N = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    return float(_fitted(z_N, t_N, np.ones((1, len(z_N))))[0])


def temperature_interval(
    logits: Sequence[float],
    targets: Sequence[float],
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """`fit_temperature` and the ends of its percentile bootstrap over clusters: fitted anew to each of `REFITS`."""
    z_N, t_N = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    names, index_N = np.unique(np.asarray(clusters, dtype=object), return_inverse=True)
    random, groups = np.random.default_rng(seed_of("temperature", seed)), len(names)
    drawn = (
        random.multinomial(groups, np.full(groups, 1 / groups), size=_CHUNK)[:, index_N]
        for _ in range(0, REFITS, _CHUNK)
    )
    found_R = np.concatenate([_fitted(z_N, t_N, times_RN) for times_RN in drawn])
    low, high = np.quantile(found_R, tails(confidence, groups))
    return fit_temperature(logits, targets), float(low), float(high)


def _fitted(z_N: Floats, t_N: Floats, times_RN: NDArray[Any]) -> Floats:
    """The temperature of each of R samples, in which answer n is `times_RN` times."""
    decided_R = times_RN @ (z_N * (t_N - 0.5) != 0)
    wanted_R = times_RN @ (z_N * (t_N - 0.5)) * decided_R / (decided_R + 2)
    low_R, high_R = np.full(len(times_RN), 1 / HOTTEST), np.full(len(times_RN), HOTTEST)
    for _ in range(60):
        middle_R = np.sqrt(low_R * high_R)
        # tanh and not exp: sigmoid(x) - 1 / 2 = tanh(x / 2) / 2 does not overflow.
        slope_R = (times_RN * z_N * np.tanh(middle_R[:, None] * z_N / 2)).sum(axis=1) / 2 - wanted_R
        low_R, high_R = np.where(slope_R < 0, middle_R, low_R), np.where(slope_R < 0, high_R, middle_R)
    found: Floats = 1 / np.sqrt(low_R * high_R)
    return found


def cross_fitted(logits: Sequence[float], targets: Sequence[float], clusters: Sequence[str]) -> list[float]:
    """p of each answer at the temperature that the other folds give: what calibration does for pairs it never saw.

    A prompt is in one fold as a whole; which one is a hash of its name.
    """
    z_N, t_N = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    fold_N = np.array([seed_of("fold", name) % FOLDS for name in clusters])
    p_N = np.empty_like(z_N)
    for fold in range(FOLDS):
        inside, outside = fold_N == fold, fold_N != fold
        temperature = fit_temperature(z_N[outside], t_N[outside]) if outside.any() else 1.0
        p_N[inside] = (1 + np.tanh(z_N[inside] / temperature / 2)) / 2
    return [float(p) for p in p_N]


# ---- several judges on the same pairs


class Rater(Record):
    """One judge, or people, and what they said of pairs."""

    name: str
    p: dict[str, float]
    """Pair id -> probability that `a` is better, where there was an answer."""
    asked: int
    fingerprint: str | None = None
    """Of the judge. None: people, or it is not known."""


class Couple(Record):
    """Two raters on the pairs that both answered."""

    one: str
    other: str
    agreement: Estimate
    """Share of pairs of which both say the same of a, b and tie."""
    kappa: Estimate | None
    """Cohen's. None: both say one thing only."""
    error_correlation: Estimate | None
    """Pearson's, of where they go against people. High: they share their faults, and a panel of them gains little."""


class AgreementReport(Record):
    """How far raters agree."""

    couples: tuple[Couple, ...]
    alpha: Estimate | None
    """Krippendorff's, nominal, of all raters together over the pairs that two or more of them answered."""
    accuracy: dict[str, Estimate]
    """Rater -> share of the pairs that people decided in which it preferred their answer."""
    trust: dict[str, Estimate] = Field(default_factory=dict)
    """Rater -> mean probability that it gave to that answer; for `statistics.judge_error`, as a win rate is a mean."""
    fingerprints: dict[str, str] = Field(default_factory=dict)
    """Rater -> fingerprint, of those that are judges: every judge that is asked in both orders has the same name."""

    def of(self, judges: Mapping[str, str]) -> Self:
        """What is said of these judges, under other names: nothing is known of a judge by another's name.

        Args:
            judges: fingerprint -> name.
        """
        known = {name: judges[found] for name, found in self.fingerprints.items() if found in judges}
        names = {**known, PEOPLE: PEOPLE}
        return self.model_copy(
            update={
                "couples": tuple(
                    couple.model_copy(update={"one": names[couple.one], "other": names[couple.other]})
                    for couple in self.couples
                    if {couple.one, couple.other} <= names.keys()
                ),
                # Of all raters together it says nothing of some of them.
                "alpha": self.alpha if known.keys() == self.fingerprints.keys() else None,
                "accuracy": {known[name]: found for name, found in self.accuracy.items() if name in known},
                "trust": {known[name]: found for name, found in self.trust.items() if name in known},
                "fingerprints": {known[name]: found for name, found in self.fingerprints.items() if name in known},
            }
        )


def agree(
    raters: Sequence[Rater],
    prompts: Mapping[str, str],
    people: Mapping[str, str] | None = None,
    *,
    doubted: Collection[str] = (),
    seed: int = 0,
) -> AgreementReport:
    """How far raters agree with each other, and with people.

    Args:
        prompts: pair id -> prompt id, for the intervals.
        people: pair id -> a, b or tie. They are one more rater, called `PEOPLE`.
        doubted: ids of the pairs that people were shown because a judge was unsure of them. How far a judge is to be
            trusted is not seen on those.
    """
    people = people or {}
    everybody = list(raters)
    if people:
        known = {pair: TARGETS[label] for pair, label in people.items()}
        everybody.append(Rater(name=PEOPLE, p=known, asked=len(known)))
    found = (_couple(one, other, prompts, people, seed) for one, other in itertools.combinations(everybody, 2))
    units = {pair: [says(each.p[pair]) for each in everybody if pair in each.p] for pair in prompts}
    shared = [pair for pair, given in units.items() if len(given) > 1]
    drawn = {pair: label for pair, label in people.items() if pair not in doubted}
    return AgreementReport(
        couples=tuple(couple for couple in found if couple is not None),
        alpha=clustered(
            alpha_rows([units[pair] for pair in shared]), [prompts[pair] for pair in shared], alpha_of, seed=seed
        ),
        accuracy=dict(_right(raters, prompts, people, credit, seed)),
        trust=dict(_right(raters, prompts, drawn, given, seed)),
        fingerprints={each.name: each.fingerprint for each in raters if each.fingerprint is not None},
    )


def _couple(
    one: Rater, other: Rater, prompts: Mapping[str, str], people: Mapping[str, str], seed: int
) -> Couple | None:
    both = [pair for pair in one.p if pair in other.p]
    labels = [says(one.p[pair]) for pair in both], [says(other.p[pair]) for pair in both]
    clusters = [prompts[pair] for pair in both]
    same = [float(x == y) for x, y in zip(*labels, strict=True)]
    agreement = clustered(mean_rows(same), clusters, mean_of, seed=seed)
    if agreement is None:
        return None
    judged = [pair for pair in both if people.get(pair, "tie") != "tie" and PEOPLE not in (one.name, other.name)]
    errors = [[1 - credit(rater.p[pair], people[pair]) for pair in judged] for rater in (one, other)]
    return Couple(
        one=one.name,
        other=other.name,
        agreement=agreement,
        kappa=clustered(kappa_rows(*labels), clusters, kappa_of, seed=seed),
        error_correlation=clustered(
            correlation_rows(*errors), [prompts[pair] for pair in judged], correlation_of, seed=seed
        ),
    )


def _right(
    raters: Sequence[Rater],
    prompts: Mapping[str, str],
    people: Mapping[str, str],
    marked: Callable[[float, str], float],
    seed: int,
) -> Iterator[tuple[str, Estimate]]:
    """Each rater's mean mark over the pairs that people decided."""
    for rater in raters:
        judged = [pair for pair in rater.p if people.get(pair, "tie") != "tie"]
        marks = [marked(rater.p[pair], people[pair]) for pair in judged]
        if marks:
            yield rater.name, share(marks, [prompts[pair] for pair in judged], seed=seed)
