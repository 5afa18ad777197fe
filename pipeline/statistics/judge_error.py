"""What people would have said, from what a judge says that errs.

Two ways, by what is known of people:

`prediction-powered`  People labelled n of the N very verdicts. The judge's mean over all of them is corrected by how
    far it is off where people spoke: lambda * mean_N(f) + mean_n(y - lambda f), with the lambda of least variance
    (Angelopoulos, Duchi and Zrnic 2023, arXiv:2311.01453; the n are among the N here, so it is the slope of y on f).
    Right whatever the judge's errors are, if who labelled did not choose the pairs by how they would come out; a
    judge that knows nothing gets lambda 0. Few labels near the edge cover less than they claim: 93 % with 30 labels
    and a rate of 0.86, as against 94 to 95 % with 60.
`Rogan-Gladen`        People labelled other pairs, of which the judge gives the right side a mean probability a. With
    errors that fall alike on both sides W = (w - (1 - a)) / (2a - 1) (Rogan and Gladen 1978). The interval is Fieller's
    (1954), which has both errors in it and is unbounded for a judge that may be no better than chance: that is "not
    identified". It takes the judge to err here as often as there.

What is left out: whether people are right.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Record
from pipeline.statistics.win_rate import Estimate, WinRate, cluster_index, score_interval, t_quantile

FEWEST = 20
"""Prompts that people must have labelled."""

Floats = NDArray[np.float64]
Method = Literal["prediction-powered", "Rogan-Gladen"]


class Corrected(Record):
    """The win rate of `one` against `other` as people would have it, by way of a judge."""

    judge: str
    one: str
    other: str
    method: Method
    win_rate: float | None
    """None: not identified."""
    low: float | None
    high: float | None
    labels: int
    """People's labels that stand behind it."""
    reliance: float | None
    """How much the judge counts. Prediction-powered: lambda, from 0 to 1. Rogan-Gladen: 2a - 1."""
    not_identified: str | None = None
    """Why there is none."""


def prediction_powered(
    judge: str,
    one: str,
    other: str,
    p: Sequence[float],
    labels: Mapping[int, float],
    clusters: Sequence[str],
    *,
    left_out: int = 0,
    confidence: float = 0.95,
) -> Corrected:
    """The win rate of `one` by people, who labelled some of the verdicts.

    Args:
        p: probability that `one`'s answer is better, by the judge.
        labels: place in `p` -> the same by people.
        clusters: the prompt of each verdict.
        left_out: labels that are not among these, because their pairs were chosen by how they would come out.
    """
    index_N, groups = cluster_index(clusters)
    at_M = np.array(sorted(labels), dtype=np.int64)
    f_N, y_M = np.asarray(p, dtype=np.float64), np.array([labels[place] for place in sorted(labels)])
    labelled = len(set(index_N[at_M].tolist()))
    if labelled < FEWEST:
        why = f"people labelled answers to {labelled} of these prompts, and {FEWEST} are needed"
        if left_out:
            why += (
                f"; {left_out} votes on pairs of which a judge was least sure do not count, because they stand for no "
                "other pair: draw more at random (prefloop annotate --control)"
            )
        return Corrected(
            judge=judge, one=one, other=other, method="prediction-powered", win_rate=None, low=None, high=None,
            labels=len(labels), reliance=None, not_identified=why,
        )  # fmt: skip

    def moved_G(values: Floats, where: NDArray[np.int64]) -> Floats:
        """How far each cluster moves the mean of the values."""
        return np.bincount(where, weights=values - values.mean(), minlength=groups) / len(values)

    # The estimate is mean(y) - lambda * gap, with gap = mean_n(f) - mean_N(f), whose expectation is 0.
    label_G = moved_G(y_M, index_N[at_M])
    gap_G = moved_G(f_N[at_M], index_N[at_M]) - moved_G(f_N, index_N)
    reliance = float(np.clip(label_G @ gap_G / (gap_G @ gap_G), 0, 1)) if gap_G.any() else 0.0
    value = float(y_M.mean() - reliance * (f_N[at_M].mean() - f_N.mean()))
    # The mean, and lambda where it is used, take a degree of freedom each.
    degrees = labelled - 1 - (reliance > 0)
    moved = label_G - reliance * gap_G
    low, high = _inside(value, math.sqrt(labelled / degrees * (moved @ moved)), degrees, confidence)
    return Corrected(
        judge=judge,
        one=one,
        other=other,
        method="prediction-powered",
        win_rate=min(1.0, max(0.0, value)),
        low=low,
        high=high,
        labels=len(labels),
        reliance=reliance,
    )


def rogan_gladen(
    judge: str, one: str, other: str, rate: WinRate, trust: Estimate, *, confidence: float = 0.95
) -> Corrected:
    """The win rate of `one` by people, from how often the judge is right elsewhere.

    Args:
        rate: what the judge says of the two.
        trust: a, the mean probability that it gave to what people preferred, over pairs that people decided.
    """
    t = t_quantile((1 + confidence) / 2, min(rate.n_clusters, trust.n_clusters) - 1)
    lead, lead_error = rate.win_rate - 0.5, rate.standard_error
    slope, slope_error = 2 * trust.value - 1, 2 * trust.standard_error
    # u = W - 1/2 solves lead = slope * u. Fieller's interval has all u with
    # (lead - slope * u)^2 <= t^2 (lead_error^2 + u^2 * slope_error^2).
    leading = slope**2 - (t * slope_error) ** 2
    if slope <= 0 or leading <= 0:
        why = "the judge may be right no more often than chance where people decided"
        return Corrected(
            judge=judge, one=one, other=other, method="Rogan-Gladen", win_rate=None, low=None, high=None,
            labels=trust.n, reliance=slope, not_identified=why,
        )  # fmt: skip
    middle, rest = lead * slope, lead**2 - (t * lead_error) ** 2
    reach = math.sqrt(middle**2 - leading * rest)
    value, low, high = (
        min(1.0, max(0.0, 0.5 + u)) for u in (lead / slope, (middle - reach) / leading, (middle + reach) / leading)
    )
    return Corrected(
        judge=judge,
        one=one,
        other=other,
        method="Rogan-Gladen",
        win_rate=value,
        low=low,
        high=high,
        labels=trust.n,
        reliance=slope,
    )


def _inside(value: float, error: float, degrees: float, confidence: float) -> tuple[float, float]:
    """The interval of a win rate whose estimate, being a difference of means, may lie outside [0, 1]."""
    if 0 < value < 1 or error == 0:
        return score_interval(min(1.0, max(0.0, value)), error, degrees, confidence)
    reach = t_quantile((1 + confidence) / 2, degrees) * error
    return min(1.0, max(0.0, value - reach)), min(1.0, max(0.0, value + reach))
