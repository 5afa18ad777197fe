"""`make coverage`: how often each interval holds a planted truth, and how often a difference is seen where none is.

Prints a table and writes runs/bench/coverage.json: for each estimator `coverage`, the share of experiments whose 95 %
interval holds the truth, and `false_better`, the share of those without a difference in which one of the two is called
better, whichever. An experiment is drawn from a known distribution and given to the very functions that a comparison
calls: prompts of unequal difficulty, so that answers to one prompt go together; one to three answers to a prompt; ties;
scores that are certain or not; judges that err. Truths are as the simulation plants them, by no function of ours.

What an estimator refuses ("not identified") is in neither share; `refused` counts it. The exit code is 1 where
a coverage is not between 94 and 96 %, or more false claims were made than two standard errors above 5 %: a test that is
exactly as strict as it says is above 5 % in half of all simulations.
"""

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, ndtr

from pipeline.ratings import Checkpoint, compare_checkpoints, corrected
from pipeline.statistics import bradley_terry
from pipeline.statistics.judge_error import prediction_powered, rogan_gladen
from pipeline.statistics.length_control import coefficient, controlled
from pipeline.statistics.win_rate import clustered_mean, excludes_half, share, win_rate

EXPERIMENTS = 10_000
SLOW = 4_000
"""Of those that make six comparisons or fit a model to each resample."""
RESAMPLES = 1000
"""Of each Bradley-Terry bootstrap; a comparison takes 5000."""
TOGETHER = 0.3
"""Correlation, within a prompt, of the normal variables that decide."""

Random = np.random.Generator
Array = np.ndarray[Any, Any]


class Claim(NamedTuple):
    """One interval, the truth it should hold, and whether a difference was claimed."""

    low: float
    high: float
    truth: float
    null: bool
    """There is no difference."""
    claimed: bool


Experiment = Callable[[Random, int], list[Claim]]
"""The intervals of one experiment, none where the estimator refuses; its number chooses the setting."""


# ---- what is drawn


def together(random: Random, prompts: int, each: int) -> Array:
    """Uniform numbers (prompts, each) that go together within a prompt, as its difficulty does."""
    shared, own = random.normal(size=(prompts, 1)), random.normal(size=(prompts, each))
    return np.asarray(ndtr(np.sqrt(TOGETHER) * shared + np.sqrt(1 - TOGETHER) * own))


def names(prompts: int, each: int) -> list[str]:
    """The prompt of each answer, prompt by prompt."""
    return [f"p{number}" for number in range(prompts) for _ in range(each)]


def contests(random: Random, rate: float, ties: float, prompts: int, each: int) -> tuple[Array, float]:
    """What people would say, (prompts, each) of 1, one half and 0, and the win rate that is planted."""
    won = (together(random, prompts, each) < rate).astype(float)
    tied = random.uniform(size=won.shape) < ties
    return np.where(tied, 0.5, won), ties / 2 + (1 - ties) * rate


def judged(random: Random, truth: Array, accuracy: float) -> Array:
    """What a judge says that is right so often; ties it decides by a coin."""
    right = random.uniform(size=truth.shape) < accuracy
    coin = random.integers(2, size=truth.shape)
    return np.where(truth == 0.5, coin, np.where(right, truth, 1 - truth)).astype(float)


def unsure(random: Random, scores: Array) -> tuple[Array, float]:
    """The same verdicts with a probability of their own, and by how much that shrinks the distance from one half."""
    return 0.5 + (scores - 0.5) * random.beta(2, 1, size=scores.shape), 2 / 3


# ---- the estimators


def rates(prompts: tuple[int, ...]) -> Iterator[tuple[float, float, bool, int]]:
    """Settings: win rate of the decided, ties, whether scores are unsure, prompts. Half are without a difference."""
    planted = (0.5, 0.6, 0.5, 0.75, 0.5, 0.9)
    return itertools.product(planted, (0.0, 0.2), (False, True), prompts)


MANY = list(rates((40, 60, 168)))
FEW = list(rates((12, 20)))


def one_rate(random: Random, setting: tuple[float, float, bool, int]) -> tuple[Any, float, bool]:
    """A win rate of unequal numbers of answers to a prompt, its truth, and whether there is none to find."""
    rate, ties, soft, prompts = setting
    scores, truth = contests(random, rate, ties, prompts, 3)
    if soft:
        scores, shrunk = unsure(random, scores)
        truth = 0.5 + (truth - 0.5) * shrunk
    asked = np.arange(3) < random.integers(1, 4, size=(prompts, 1))
    clusters = [name for name, kept in zip(names(prompts, 3), asked.ravel(), strict=True) if kept]
    found = win_rate(scores[asked].tolist(), clusters, seed=int(random.integers(2**31)))
    return found, truth, rate == 0.5


def rate(random: Random, number: int) -> list[Claim]:
    """The win rate of a comparison."""
    found, truth, null = one_rate(random, MANY[number % len(MANY)])
    return [Claim(found.low, found.high, truth, null, found.decisive)]


def rate_of_few(random: Random, number: int) -> list[Claim]:
    """The same of 12 and 20 prompts, where the test is exact."""
    found, truth, null = one_rate(random, FEW[number % len(FEW)])
    return [Claim(found.low, found.high, truth, null, found.decisive)]


def rate_by_bootstrap(random: Random, number: int) -> list[Claim]:
    """The second opinion."""
    found, truth, null = one_rate(random, MANY[number % len(MANY)])
    low, high = found.bootstrap_low, found.bootstrap_high
    return [Claim(low, high, truth, null, excludes_half(low, high))]


def mean(random: Random, number: int) -> list[Claim]:
    """A mean that is no share, such as KL: none at all, or skewed."""
    prompts, null = (40, 168)[number % 2], number % 4 < 2
    shared = random.normal(size=(prompts, 1)) if null else random.gamma(4, size=(prompts, 1))
    values = shared + random.normal(size=(prompts, 2))
    found = clustered_mean(values.ravel().tolist(), names(prompts, 2), seed=int(random.integers(2**31)))
    claimed = found.low > 0 or found.high < 0
    return [Claim(found.low, found.high, 0.0 if null else 4.0, null, claimed)]


CHECKPOINTS = ("base", "dpo", "kto", "ppo")


def bare(name: str) -> Checkpoint:
    """A checkpoint of which nothing matters but the name."""
    return Checkpoint(
        name=name, algorithm=name, n_answers=1, tokens_mean=None, words_mean=1, finished_share=None, distinct_2=0,
        repetition=0, kl=None,
    )  # fmt: skip


def holm(random: Random, number: int) -> list[Claim]:
    """Six comparisons of four checkpoints under Holm's correction; without a difference, any claim is one too many."""
    prompts, lead = 40, (0.0, 0.6)[number % 2]
    quality = random.normal(size=(prompts, 4)) + lead * np.arange(4)
    found, truths = [], []
    for other, one in itertools.combinations(range(4), 2):
        won = quality[:, one] - quality[:, other] + random.normal(size=prompts) > 0
        scores, shrunk = unsure(random, won.astype(float))
        rows = [(f"p{place}", each) for place, each in enumerate(scores.tolist())]
        seed = int(random.integers(2**31))
        found.append(compare_checkpoints("j", bare(CHECKPOINTS[one]), bare(CHECKPOINTS[other]), rows, seed=seed))
        truths.append(0.5 + shrunk * (float(ndtr(lead * (one - other) / np.sqrt(3))) - 0.5))
    claims = corrected(found, confidence=0.95)
    any_claim = any(each.decisive for each in claims)
    return [Claim(each.low, each.high, truth, lead == 0, any_claim) for each, truth in zip(claims, truths, strict=True)]


SIDE, TIE = 0.3, -1.5  # delta and tau that are planted
STRENGTHS = ((0.0, 0.0, 0.0, 0.0), (0.0, 0.5, 1.0, 1.5))


def met(random: Random, theta: tuple[float, ...], prompts: int, side: float) -> list[tuple[str, str, str, float]]:
    """Every two of four checkpoints on every prompt, as Davidson's model has it; a prompt favours who it favours."""
    favour, rows = random.normal(size=(prompts, 4)), []
    for one, other in itertools.combinations(range(4), 2):
        shared = (favour[:, one] - favour[:, other]) / np.sqrt(2)
        drawn = ndtr(np.sqrt(TOGETHER) * shared + np.sqrt(1 - TOGETHER) * random.normal(size=prompts))
        first = random.integers(2, size=prompts) == 0
        lead = theta[one] - theta[other] + np.where(first, side, -side)
        weights = np.exp(np.stack([lead / 2, np.full(prompts, TIE), -lead / 2]))
        win, _, loss = weights / weights.sum(axis=0)
        scores = np.where(drawn > 1 - win, 1.0, np.where(drawn > loss, 0.5, 0.0))
        for place, (score, is_first) in enumerate(zip(scores.tolist(), first.tolist(), strict=True)):
            a, b, p = (one, other, score) if is_first else (other, one, 1 - score)
            rows.append((f"p{place}", CHECKPOINTS[a], CHECKPOINTS[b], p))
    return rows


def fitted(random: Random, number: int, side: float) -> tuple[bradley_terry.Strengths, tuple[float, ...]]:
    theta, prompts = STRENGTHS[number % 2], (40, 100)[number // 2 % 2]
    rows, seed = met(random, theta, prompts, side), int(random.integers(2**31))
    found = bradley_terry.strengths("j", CHECKPOINTS, "base", rows, seed=seed, resamples=RESAMPLES)
    assert found is not None
    return found, theta


def strength(random: Random, number: int) -> list[Claim]:
    """The strengths of three checkpoints against the base."""
    found, theta = fitted(random, number, SIDE)
    return [
        Claim(one.low, one.high, truth, truth == 0, one.low > 0 or one.high < 0)
        for one, truth in zip(found.strengths[1:], theta[1:], strict=True)
    ]


def side(random: Random, number: int) -> list[Claim]:
    """What an answer gets for its side."""
    planted = (0.0, SIDE)[number // 4 % 2]
    found, _ = fitted(random, number, planted)
    return [Claim(found.side.low, found.side.high, planted, planted == 0, found.side.low > 0 or found.side.high < 0)]


LENGTHS = list(itertools.product((0.0, 0.5, 0.0, 1.5), ((0.0, 0.0), (0.1, 1.5), (-0.15, 3.0)), (40, 168)))
"""theta; how much longer the answers are, and phi; prompts."""


def equal_length(random: Random, number: int) -> list[Claim]:
    """The win rate at equal length, phi from 128 prompts on which one policy answered three times."""
    theta, (longer, phi), prompts = LENGTHS[number % len(LENGTHS)]

    def drawn(prompts: int, each: int, lead: float, middle: float) -> tuple[list[float], list[float], list[str]]:
        d = np.clip(random.normal(middle, 0.25, size=(prompts, each)), -0.95, 0.95)
        won = together(random, prompts, each) < expit(lead + phi * d)
        return won.ravel().astype(float).tolist(), d.ravel().tolist(), names(prompts, each)

    found = controlled("one", "other", coefficient("j", *drawn(128, 3, 0.0, 0.0)), *drawn(prompts, 2, theta, longer))
    if found.win_rate is None:
        return []
    return [Claim(found.low, found.high, float(expit(theta)), theta == 0, excludes_half(found.low, found.high))]


ERRING = list(itertools.product((0.5, 0.6, 0.5, 0.8), (0.0, 0.2), (0.7, 0.8, 0.95), (100, 168)))
"""Win rate of the decided, ties, the judge's accuracy, prompts."""


def by_votes(random: Random, number: int) -> list[Claim]:
    """Prediction-powered: people voted on one answer to 60 of the prompts."""
    rate, ties, accuracy, prompts = ERRING[number % len(ERRING)]
    people, truth = contests(random, rate, ties, prompts, 2)
    voted = random.choice(prompts, size=60, replace=False)
    labels = {2 * int(place): float(people[place, 0]) for place in voted}
    said = judged(random, people, accuracy).ravel().tolist()
    found = prediction_powered("j", "one", "other", said, labels, names(prompts, 2))
    return [Claim(found.low, found.high, truth, rate == 0.5, excludes_half(found.low, found.high))]


def by_accuracy(random: Random, number: int) -> list[Claim]:
    """Rogan-Gladen: the judge's accuracy is known from two answers to each of 100 other prompts."""
    rate, ties, accuracy, prompts = ERRING[number % len(ERRING)]
    people, truth = contests(random, rate, ties, prompts, 2)
    seeds = random.integers(2**31, size=2)
    said = win_rate(judged(random, people, accuracy).ravel().tolist(), names(prompts, 2), seed=int(seeds[0]))
    right = (together(random, 100, 2) < accuracy).ravel().astype(float).tolist()
    found = rogan_gladen("j", "one", "other", said, share(right, names(100, 2), seed=int(seeds[1])))
    if found.win_rate is None:
        return []
    return [Claim(found.low, found.high, truth, rate == 0.5, excludes_half(found.low, found.high))]


ESTIMATORS: dict[str, tuple[Experiment, int]] = {
    "win rate": (rate, EXPERIMENTS),
    "win rate, 12 and 20 prompts": (rate_of_few, EXPERIMENTS),
    "win rate, bootstrap": (rate_by_bootstrap, EXPERIMENTS),
    "win rates under Holm": (holm, SLOW),
    "mean, bootstrap": (mean, EXPERIMENTS),
    "strength, Bradley-Terry": (strength, SLOW),
    "side, Bradley-Terry": (side, SLOW),
    "win rate at equal length": (equal_length, EXPERIMENTS),
    "prediction-powered": (by_votes, EXPERIMENTS),
    "Rogan-Gladen": (by_accuracy, EXPERIMENTS),
}


def simulate(name: str, experiments: int | None = None, seed: int = 1) -> dict[str, float | int]:
    """Coverage and false claims of one estimator."""
    experiment, planned = ESTIMATORS[name]
    experiments, random = experiments or planned, np.random.default_rng([seed, *name.encode()])
    found = [experiment(random, number) for number in range(experiments)]
    claims = [claim for one in found for claim in one]
    held = [claim.low - 1e-12 <= claim.truth <= claim.high + 1e-12 for claim in claims]
    false = [claim.claimed for claim in claims if claim.null]
    return {
        "coverage": round(sum(held) / len(held), 4),
        "false_better": round(sum(false) / len(false), 4),
        "without_difference": len(false),
        "experiments": experiments,
        "refused": sum(not one for one in found),
    }


def main(out: Path = Path("runs/bench/coverage.json")) -> None:
    figures = {}
    with ProcessPoolExecutor() as pool:
        for name, found in zip(ESTIMATORS, pool.map(simulate, ESTIMATORS), strict=True):
            figures[name] = found
            print(
                f"{name:30s} {100 * found['coverage']:5.1f} % covered {100 * found['false_better']:5.1f} % false "
                f"{found['experiments']:6d} experiments {found['refused']:4d} refused",
                flush=True,
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    outside = [name for name, found in figures.items() if not 0.94 <= found["coverage"] <= 0.96]
    outside += [name for name, found in figures.items() if found["false_better"] > most(found["without_difference"])]
    if outside:
        sys.exit(f"outside 94 to 96 %, or more than 5 % false: {', '.join(dict.fromkeys(outside))}")


def most(experiments: float) -> float:
    """False claims of so many experiments that a 5 % test may make."""
    return 0.05 + 2 * math.sqrt(0.05 * 0.95 / experiments)


if __name__ == "__main__":
    main()
