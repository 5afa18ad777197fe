"""One strength for each of several checkpoints, from all verdicts of a judge: Bradley and Terry's model with ties.

A verdict on answers a and b has three outcomes, with log-weights (Davidson 1970 for ties, Davidson and Beaver 1977 for
the order of presentation, both in logarithms):

    a wins   (theta_a - theta_b + delta) / 2
    tie      tau                                    Davidson's nu is exp(tau)
    b wins  -(theta_a - theta_b + delta) / 2

`theta` are the strengths, in log-odds against the anchor, whose own is 0; `delta` is what a judge gives to side a
whoever stands there. Where no verdict is a tie, tau is minus infinity and the model is Bradley and Terry's (1952). A
probability between counts as so much of a win for each side: then it is a working model, and its intervals, which come
from resampling prompts, do not depend on it.

What is left out: who may be called better than whom, which is said by win rates and Holm's correction
(`pipeline.ratings`).
"""

import itertools
import math
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Record
from pipeline.statistics.win_rate import RESAMPLES, Estimate, cluster_index, tails

RIDGE = 0.01
"""Weight of |parameters|^2 / 2 against the log-likelihood: keeps finite who never lost in a resample."""

_CHUNK = 100  # resamples drawn at once: bounds memory at 100 x prompts
_STEPS = 100
_LONGEST = 2.0  # step of one iteration in any direction: Newton's own overshoot where somebody never lost

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Strength(Record):
    """One checkpoint's, in log-odds against the anchor."""

    name: str
    value: float
    low: float
    high: float

    @property
    def elo(self) -> float:
        """The same on the scale of chess, the anchor at 1000: 400 points are odds of ten to one."""
        return 1000 + 400 / math.log(10) * self.value


class Strengths(Record):
    """All checkpoints on one scale, by one judge."""

    judge: str
    anchor: str
    strengths: tuple[Strength, ...]
    side: Estimate
    """delta: log-odds that side a gets for being side a. Sides are drawn by hash, so it harms no strength."""
    tie: float | None
    """Davidson's nu: ties for each win of either, between equals. None: no verdict was a tie."""
    largest_misfit: float
    """Largest distance between the win rate of two checkpoints and what their strengths say of it. Where it is large
    they cannot be put in one order: each beats another in a circle."""
    n: int
    n_clusters: int


class Verdicts(NamedTuple):
    """What was said of pairs of K checkpoints, counted by cell: who stood on side a, and who on side b."""

    a_C: Ints
    b_C: Ints
    counts_GC3: Floats
    """Wins of a, ties and wins of b in each cell, for each of G prompts."""


def strengths(
    judge: str,
    names: Sequence[str],
    anchor: str,
    rows: Sequence[tuple[str, str, str, float]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Strengths | None:
    """The strengths with the bootstrap's intervals over prompts. None: they are not on one scale, see `comparable`.

    Args:
        names: the checkpoints, in the order of the result.
        rows: (prompt, who stood on side a, who on side b, P(a is better)), one per verdict; 0.5 is a tie.
    """
    if not comparable(names, rows):
        return None
    verdicts = counted(names, rows)
    total_C3 = verdicts.counts_GC3.sum(axis=0)
    place, groups = names.index(anchor), len(verdicts.counts_GC3)
    design_CP = design(verdicts, len(names), place)
    point_P = fit(total_C3, design_CP)
    drawn_RP = fit(_resampled(verdicts.counts_GC3, resamples, seed), design_CP, start=point_P)
    low_P, high_P = np.quantile(drawn_RP[:, :-1], tails(confidence, groups), axis=0)
    where = itertools.count()  # the anchor has no column: it is 0
    theta = [None if name == anchor else next(where) for name in names]
    side = len(names) - 1
    return Strengths(
        judge=judge,
        anchor=anchor,
        strengths=tuple(
            Strength(name=name, value=0.0, low=0.0, high=0.0)
            if at is None
            else Strength(name=name, value=float(point_P[at]), low=float(low_P[at]), high=float(high_P[at]))
            for name, at in zip(names, theta, strict=True)
        ),
        side=Estimate(
            value=float(point_P[side]),
            low=float(low_P[side]),
            high=float(high_P[side]),
            standard_error=float(drawn_RP[:, side].std()),
            n=len(rows),
            n_clusters=groups,
        ),
        tie=math.exp(point_P[-1]) if total_C3[:, 1].any() else None,
        largest_misfit=_misfit(verdicts, point_P, design_CP),
        n=len(rows),
        n_clusters=groups,
    )


def _resampled(counts_GC3: Floats, resamples: int, seed: int) -> Floats:
    """The counts of so many resamples of the prompts, (R, C, 3)."""
    random, groups = np.random.default_rng(seed), len(counts_GC3)
    found_RC3 = np.empty((resamples, *counts_GC3.shape[1:]))
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights_RG = random.multinomial(groups, np.full(groups, 1 / groups), size=size)
        found_RC3[start : start + size] = np.tensordot(weights_RG.astype(np.float64), counts_GC3, axes=1)
    return found_RC3


def fit(counts_C3: Floats, design_CP: Floats, *, start: Floats | None = None, ridge: float = RIDGE) -> Floats:
    """The parameters that maximise the penalised likelihood, by Newton's method: (..., P + 1) of counts (..., C, 3).

    Args:
        counts_C3: wins of a, ties, wins of b in each cell; any axes before are fits of their own.
        design_CP: what each parameter adds to the log-odds of a against b in each cell.
        start: where to begin; shape (P + 1).

    The last parameter is tau. Where there are no ties it has no say, and is -inf.
    """
    batch, n_parameters = counts_C3.shape[:-2], design_CP.shape[1]
    beta = (
        np.zeros((*batch, n_parameters + 1)) if start is None else np.broadcast_to(start, (*batch, len(start))).copy()
    )
    ties = bool(counts_C3[..., 1].any())
    if not ties:
        beta[..., -1] = -np.inf
    n_C = counts_C3.sum(axis=-1)
    lead_C = (counts_C3[..., 0] - counts_C3[..., 2]) / 2
    for _ in range(_STEPS):
        p_C3 = outcomes(beta, design_CP)
        win_C, tie_C = (p_C3[..., 0] - p_C3[..., 2]) / 2, p_C3[..., 1]
        # Score and information of the multinomial with statistics (1/2, 0, -1/2) and (0, 1, 0).
        slope = np.concatenate(
            [(lead_C - n_C * win_C) @ design_CP, (counts_C3[..., 1] - n_C * tie_C).sum(-1, keepdims=True)], axis=-1
        )
        spread_C = n_C * ((1 - tie_C) / 4 - win_C**2)
        mixed_P = (-n_C * tie_C * win_C) @ design_CP
        information = np.zeros((*batch, n_parameters + 1, n_parameters + 1))
        information[..., :-1, :-1] = np.einsum("...c,cp,cq->...pq", spread_C, design_CP, design_CP)
        information[..., :-1, -1] = information[..., -1, :-1] = mixed_P
        information[..., -1, -1] = (n_C * tie_C * (1 - tie_C)).sum(-1) if ties else 1.0
        information += ridge * np.eye(n_parameters + 1)
        slope -= ridge * np.where(np.isfinite(beta), beta, 0.0)
        step = np.linalg.solve(information, slope[..., None])[..., 0]
        step *= np.minimum(1.0, _LONGEST / np.maximum(np.abs(step).max(axis=-1, keepdims=True), _LONGEST))
        beta = beta + step
        if np.abs(step).max() < 1e-6:  # what is left is about its square
            break
    return beta


def outcomes(beta: Floats, design_CP: Floats) -> Floats:
    """P(a wins), P(tie) and P(b wins) in each cell, (..., C, 3), of parameters (..., P + 1)."""
    lead_C = beta[..., :-1] @ design_CP.T / 2
    log_C3 = np.stack([lead_C, np.broadcast_to(beta[..., -1:], lead_C.shape), -lead_C], axis=-1)
    weights_C3 = np.exp(log_C3 - log_C3.max(axis=-1, keepdims=True))
    return np.asarray(weights_C3 / weights_C3.sum(axis=-1, keepdims=True))


def counted(names: Sequence[str], rows: Sequence[tuple[str, str, str, float]]) -> Verdicts:
    """The rows by prompt and cell. A probability other than one half is p of a win for a, and 1 - p of one for b."""
    number = {name: place for place, name in enumerate(names)}
    cells = {cell: place for place, cell in enumerate(sorted({(number[a], number[b]) for _, a, b, _ in rows}))}
    prompt_N, groups = cluster_index([row[0] for row in rows])
    cell_N = np.array([cells[number[a], number[b]] for _, a, b, _ in rows])
    p_N = np.array([p for *_, p in rows])
    counts_GC3 = np.zeros((groups, len(cells), 3))
    tied_N = p_N == 0.5
    for outcome, weight_N in enumerate((np.where(tied_N, 0, p_N), tied_N, np.where(tied_N, 0, 1 - p_N))):
        np.add.at(counts_GC3[..., outcome], (prompt_N, cell_N), weight_N)
    a_C, b_C = np.array(list(cells)).T
    return Verdicts(a_C, b_C, counts_GC3)


def design(verdicts: Verdicts, n_names: int, anchor: int) -> Floats:
    """+1 for who stands on side a, -1 for side b, no column for the anchor; the last column is the side's."""
    columns_CK = np.eye(n_names)[verdicts.a_C] - np.eye(n_names)[verdicts.b_C]
    return np.concatenate([np.delete(columns_CK, anchor, axis=1), np.ones((len(columns_CK), 1))], axis=1)


def comparable(names: Sequence[str], rows: Sequence[tuple[str, str, str, float]]) -> bool:
    """True if everybody beat, or tied with, everybody, directly or through others (Ford 1957).

    Otherwise some of them won everything against the rest, or never met them, and no finite strengths say so.
    """
    won = {pair for _, a, b, p in rows for pair in [(a, b)] * (p > 0) + [(b, a)] * (p < 1)}
    lost = {(loser, winner) for winner, loser in won}
    return len(names) > 1 and all(_reached(names[0], steps) == set(names) for steps in (won, lost))


def _reached(start: str, steps: Set[tuple[str, str]]) -> set[str]:
    """Everybody that a path leads to."""
    reached = {start}
    while more := {after for before, after in steps if before in reached} - reached:
        reached |= more
    return reached


def _misfit(verdicts: Verdicts, beta_P: Floats, design_CP: Floats) -> float:
    """Largest |observed - expected| score of a pair of checkpoints, both sides together, a tie one half."""
    score_3 = np.array([1, 0.5, 0])
    total_C3 = verdicts.counts_GC3.sum(axis=0)
    n_C = total_C3.sum(axis=1)
    gap_C = (total_C3 - n_C[:, None] * outcomes(beta_P, design_CP)) @ score_3
    met: dict[tuple[int, int], tuple[float, float]] = {}
    for a, b, gap, n in zip(verdicts.a_C, verdicts.b_C, gap_C, n_C, strict=True):
        # On the other side the gap is that of the other one.
        summed, counted = met.get((min(a, b), max(a, b)), (0.0, 0.0))
        met[min(a, b), max(a, b)] = (summed + (gap if a < b else -gap), counted + n)
    return max(abs(float(gap / n)) for gap, n in met.values())
