"""How good a reward model is on pairs of prompts that it was not trained on: agreement, length, calibration.

What is left out: how it is trained (`reward_model.py`), and what is refused for it (`rewards.py`).
"""

from collections.abc import Sequence

import numpy as np

from pipeline import agreement
from pipeline.errors import TrainingError
from pipeline.records import Preference, Record, digest, seed_of
from pipeline.statistics.win_rate import WinRate, win_rate

CONFIDENCE = 0.95
"""Level of the intervals."""

BINS = 10
"""Of equal width, for the calibration error."""


class HeldOut(Record):
    """How a reward model did on held-out pairs. Intervals are clustered by prompt."""

    prompts: int
    pairs: int
    confidence: float
    """Level of the intervals."""
    accuracy: float
    """Share of the pairs that it orders as the judge did; a tie counts one half."""
    low: float
    high: float
    longer_wins: float
    """The same for an order by length alone, the longer answer first."""
    longer_wins_low: float
    longer_wins_high: float
    pearson: float | None
    """Correlation of score and length in tokens over the different answers; None if one of them is constant."""
    spearman: float | None
    """The same of their ranks."""
    brier: float
    """Mean squared distance between sigmoid(difference of the scores) and the judge's confidence."""
    ece: float
    """Expected calibration error: the same two, their mean distance over bins."""
    temperature: float
    """By which differences of scores are divided, so that their sigmoid is as sure as the judge was."""
    temperature_low: float
    temperature_high: float
    ece_calibrated: float
    """The calibration error at temperatures that were fitted without the prompt in question."""

    @property
    def beats_chance(self) -> bool:
        """True if the whole interval of the accuracy is above one half."""
        return self.low > 0.5


def split(preferences: Sequence[Preference], share: float, seed: int) -> tuple[list[Preference], list[Preference]]:
    """Preferences to train on, and those of the held-out prompts; no prompt is on both sides.

    Raises:
        TrainingError: there are fewer than two prompts.
    """
    prompts = sorted({preference.prompt.id for preference in preferences}, key=lambda name: digest([seed, name], 64))
    if len(prompts) < 2:
        raise TrainingError(
            f"the reward model has pairs of {len(prompts)} prompts; it needs one to train on and one held out"
        )
    held_out = set(prompts[: min(len(prompts) - 1, max(1, round(share * len(prompts))))])
    return (
        [preference for preference in preferences if preference.prompt.id not in held_out],
        [preference for preference in preferences if preference.prompt.id in held_out],
    )


def examine(
    preferences: Sequence[Preference],
    scores: Sequence[tuple[float, float]],
    lengths: Sequence[tuple[int, int]],
    seed: int,
) -> HeldOut:
    """How the scores of chosen and rejected answers agree with the judge, and with length.

    Args:
        scores: the model's, of each pair's chosen and rejected answer.
        lengths: tokens of the same.
    """
    scores_N2, lengths_N2 = np.array(scores, dtype=float), np.array(lengths, dtype=float)
    prompts = [preference.prompt.id for preference in preferences]
    confidence_N = np.array([preference.confidence for preference in preferences])
    accuracy = _share(scores_N2, prompts, seed_of(seed, "accuracy"))
    longer = _share(lengths_N2, prompts, seed_of(seed, "longer"))
    answers = {
        (preference.prompt.id, answer.key): measured
        for preference, two in zip(preferences, np.stack([scores_N2, lengths_N2], axis=-1), strict=True)
        for answer, measured in zip((preference.chosen, preference.rejected), two, strict=True)
    }
    scores_M, lengths_M = np.array(list(answers.values())).T
    differences_N = scores_N2[:, 0] - scores_N2[:, 1]
    p_N = (1 + np.tanh(differences_N / 2)) / 2
    temperature, coldest, hottest = agreement.temperature_interval(
        differences_N.tolist(), confidence_N.tolist(), prompts, confidence=CONFIDENCE, seed=seed_of(seed, "temperature")
    )
    calibrated_N = np.array(agreement.cross_fitted(differences_N.tolist(), confidence_N.tolist(), prompts))
    return HeldOut(
        prompts=len(set(prompts)),
        pairs=len(preferences),
        confidence=CONFIDENCE,
        accuracy=accuracy.win_rate,
        low=accuracy.low,
        high=accuracy.high,
        longer_wins=longer.win_rate,
        longer_wins_low=longer.low,
        longer_wins_high=longer.high,
        pearson=_pearson(scores_M, lengths_M),
        spearman=_pearson(_ranks(scores_M), _ranks(lengths_M)),
        brier=float(np.mean((p_N - confidence_N) ** 2)),
        ece=calibration_error(p_N, confidence_N),
        temperature=temperature,
        temperature_low=coldest,
        temperature_high=hottest,
        ece_calibrated=calibration_error(calibrated_N, confidence_N),
    )


def calibration_error(p_N: np.ndarray, truth_N: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3), of the answer that is thought better.

    Args:
        p_N: predicted probability that the first answer of a pair is better.
        truth_N: the judge's; 0 or 1 from a judge that is always sure.
    """
    flip_N = p_N < 0.5
    p_N, truth_N = np.where(flip_N, 1 - p_N, p_N), np.where(flip_N, 1 - truth_N, truth_N)
    bin_N = np.minimum(((p_N - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [abs(float((p_N - truth_N)[bin_N == each].sum())) for each in range(BINS)]
    return sum(gaps) / len(p_N)


def _share(values_N2: np.ndarray, prompts: Sequence[str], seed: int) -> WinRate:
    wins_N = (1 + np.sign(values_N2[:, 0] - values_N2[:, 1])) / 2
    return win_rate(wins_N.tolist(), prompts, confidence=CONFIDENCE, seed=seed)


def _pearson(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = float(np.sqrt((x_N @ x_N) * (y_N @ y_N)))
    return float(x_N @ y_N) / scale if scale else None


def _ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: np.ndarray = (ends - (counts - 1) / 2)[inverse]
    return found
