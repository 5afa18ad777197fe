"""What is left of a win rate between answers of one length: logit P(one is better) = theta + phi * d.

d is the difference of the two lengths over their sum, between -1 and 1, so that it means the same for short answers and
long ones. `phi`, what a judge gives to length, is one number for each judge, and comes from pairs of answers by one and
the same policy: no system is better there, so what length earns is the judge's doing, as far as the longer of a
policy's own answers are as good as the shorter. A phi of each system's own, fitted with its theta, takes quality for
length wherever all its answers are shorter; on 50 published systems that was further from the accepted numbers than no
control at all. With phi known, theta solves sum_i (s_i - sigma(theta + phi d_i)) = 0, and sigma(theta) is the win rate
at d = 0. Where phi is 0 it is the win rate itself.

The standard error is the sandwich's, clustered by prompt, with the error of phi in it; the interval is that of a win
rate with this error. What cannot be told apart from length is said to be "not identified", with the reason. What is
left out: style.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Record
from pipeline.statistics.win_rate import cluster_index, score_interval, spread, together

FEWEST = 30
"""Prompts with answers of different lengths that phi needs."""
NEAR = 0.25
"""Lengths are nearly equal where |d| is at most so many standard deviations of d."""
OVERLAP = 0.1
"""Share of the verdicts that must be on nearly equal lengths: theta is what happens there, and not an extrapolation."""
LARGEST = 30.0
"""Of theta and of phi, in log-odds. Where one is larger, length (or one of the two) decides everything."""

Floats = NDArray[np.float64]


class LengthCoefficient(Record):
    """phi of one judge."""

    judge: str
    value: float | None
    """Log-odds for being all the longer there is (d = 1 against d = 0). None: not identified."""
    standard_error: float | None
    n: int
    """Pairs of answers by one policy, of different lengths."""
    n_clusters: int
    not_identified: str | None = None
    """Why there is none."""


class LengthControlled(Record):
    """The win rate of `one` against `other` between answers of one length."""

    judge: str
    one: str
    other: str
    win_rate: float | None
    """None: not identified."""
    low: float | None
    high: float | None
    not_identified: str | None = None
    """Why there is none."""


def relative(length: float, other: float) -> float:
    """d: (length - other) / (length + other); 0 for two empty answers."""
    return (length - other) / (length + other) if length + other else 0.0


def coefficient(
    judge: str, p: Sequence[float], differences: Sequence[float], clusters: Sequence[str]
) -> LengthCoefficient:
    """phi from a judge's verdicts on pairs of answers by one policy.

    Args:
        p: probability that the first answer is better.
        differences: d of the first answer against the second.
        clusters: the prompt of each pair.
    """
    told = [row for row in zip(p, differences, clusters, strict=True) if row[1] != 0]
    p_N, d_N = (np.array([row[column] for row in told], dtype=np.float64) for column in (0, 1))
    index_N, groups = cluster_index([row[2] for row in told])
    why, phi = None, 0.0
    if groups < FEWEST:
        why = f"answers by one policy differ in length on {groups} prompts, and {FEWEST} are needed"
    else:
        phi = solve(p_N, np.zeros_like(d_N), d_N)
        if abs(phi) >= LARGEST:
            why = f"of two answers by one policy the {'longer' if phi > 0 else 'shorter'} always wins"
    if why is not None:
        return LengthCoefficient(
            judge=judge, value=None, standard_error=None, n=len(told), n_clusters=groups, not_identified=why
        )
    s_N = _sigmoid(phi * d_N)
    moved_G = np.bincount(index_N, weights=(p_N - s_N) * d_N, minlength=groups) / float((s_N * (1 - s_N)) @ d_N**2)
    return LengthCoefficient(judge=judge, value=phi, standard_error=spread(moved_G), n=len(told), n_clusters=groups)


def controlled(
    one: str,
    other: str,
    phi: LengthCoefficient,
    p: Sequence[float],
    differences: Sequence[float],
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
) -> LengthControlled:
    """The win rate of `one` at equal length.

    Args:
        p: probability that `one`'s answer is better, by the judge of `phi`.
        differences: d of `one`'s answer against that of `other`.
        clusters: the prompt of each.
    """
    p_N, d_N = np.asarray(p, dtype=np.float64), np.asarray(differences, dtype=np.float64)
    index_N, groups = cluster_index(clusters)
    why = phi.not_identified or _obstacle(p_N, d_N)
    if why is not None or phi.value is None or phi.standard_error is None:
        return LengthControlled(
            judge=phi.judge, one=one, other=other, win_rate=None, low=None, high=None, not_identified=why
        )
    theta = solve(p_N, phi.value * d_N, np.ones_like(d_N))
    s_N = _sigmoid(theta + phi.value * d_N)
    weights_N = s_N * (1 - s_N)
    own = spread(np.bincount(index_N, weights=p_N - s_N, minlength=groups) / weights_N.sum())
    # d theta / d phi, by the implicit function.
    carried = phi.standard_error * abs(float(weights_N @ d_N / weights_N.sum()))
    error, degrees = together((own, groups - 1), (carried, phi.n_clusters - 1))
    value = float(_sigmoid(np.array(theta)))
    low, high = score_interval(value, error * value * (1 - value), degrees, confidence)
    return LengthControlled(judge=phi.judge, one=one, other=other, win_rate=value, low=low, high=high)


def solve(p_N: Floats, offset_N: Floats, x_N: Floats) -> float:
    """The beta with sum_i x_i (p_i - sigma(offset_i + beta x_i)) = 0, cut off at plus and minus `LARGEST`.

    The sum falls as beta rises, so its zero is found by halving.
    """

    def slope(beta: float) -> float:
        return float(x_N @ (p_N - _sigmoid(offset_N + beta * x_N)))

    low, high = -LARGEST, LARGEST
    if slope(low) <= 0 or slope(high) >= 0:
        return low if slope(low) <= 0 else high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2


def _obstacle(p_N: Floats, d_N: Floats) -> str | None:
    """Why these verdicts have no win rate at equal length."""
    if not len(p_N):
        return "there is no verdict"
    near = float(np.mean(np.abs(d_N) <= NEAR * d_N.std()))
    if near < OVERLAP:
        return f"lengths are nearly equal in {100 * near:.0f} % of the verdicts, and {100 * OVERLAP:.0f} % are needed"
    if p_N.max() == 0 or p_N.min() == 1:
        return "one of the two won everything"
    return None


def _sigmoid(x: Floats) -> Floats:
    return np.asarray((1 + np.tanh(x / 2)) / 2)
