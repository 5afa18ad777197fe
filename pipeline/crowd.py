"""What the votes of several people on a pair say together, and what they say about the people. Pure functions.

A verdict on a pair comes from its votes by one of two rules. Both keep ties, and to neither one vote is certainty:

`majority`     The label that most chose; two labels that most chose are a tie. p(a) = (n_a + n_tie / 2 + 1) / (n + 2),
               Laplace's rule of succession: 2/3 after one vote for a, 4/5 after three of three, 3/5 after two of three.
`dawid_skene`  Each annotator has a confusion matrix, found with the true labels by expectation maximisation (Dawid and
               Skene 1979, equations 2.3 to 2.5), that says of a and b the same: a hash of the answers decides which is
               called a, so that nobody can be better at it. A habit of the left side is none of the side called a, and
               `people` has it. Only pairs with two votes or more teach anything about who cast them.
               p(a) = T_a + T_tie / 2 of the posterior T; where a tie is the likeliest, exactly one half.

By both, a pair whose sides change names has the same verdict with its sides exchanged, and no other pair has another.

What is left out: reading votes (`pipeline.importers`), and the agreement of judges with people (`pipeline.agreement`).
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.agreement import LABELS, alpha_of, alpha_rows, clustered
from pipeline.importers.base import NOBODY, Aggregate, Choice
from pipeline.records import Record, Sample, Verdict, Vote, digest
from pipeline.statistics.win_rate import Estimate

VERSION = 3
"""Raised when a change of this file changes what votes amount to."""

NAME = "human"
"""Whose verdicts these are called."""

ROUNDS = 200
"""Of expectation maximisation at most; it stops as soon as no posterior moves by `TOLERANCE`."""

TOLERANCE = 1e-6

_SAME = 1e-9
"""Posteriors that differ by less are equal, but for rounding."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def majority(choices: Sequence[str]) -> str:
    """The label that most chose; a tie where two labels have most."""
    counts = Counter(choices).most_common()
    return counts[0][0] if len(counts) == 1 or counts[0][1] > counts[1][1] else "tie"


def p_majority(choices: Sequence[str]) -> float:
    """Probability that a is better, by the rule of the file's first paragraph."""
    if majority(choices) == "tie":
        return 0.5
    counts = Counter(choices)
    return (counts["a"] + counts["tie"] / 2 + 1) / (len(choices) + 2)


class Skene(NamedTuple):
    """What Dawid and Skene's model finds for N pairs, W annotators and L labels."""

    posterior_NL: Floats
    """T_ij: probability that label j is the true one of pair i."""
    confusion_WLL: Floats
    """pi_jl of annotator k: probability that they say l where j is true. The same with a and b exchanged."""
    prior_L: Floats
    """p_j: share of each label, where a and b share what is no tie."""


def tied(table_WLL: Floats) -> Floats:
    """A table of annotators, true labels and labels that they said, and the same with a and b exchanged, in one sum."""
    other_L = np.arange(table_WLL.shape[2])
    other_L[:2] = 1, 0
    return table_WLL + table_WLL[:, other_L[:, None], other_L]


def dawid_skene(pair_V: Ints, who_V: Ints, label_V: Ints, labels: int, smoothing: float = 1.0) -> Skene:
    """Expectation maximisation from the shares of the votes. The first two labels are the two sides of a pair:
    equally likely before anybody voted, and told from each other and from the rest equally well.

    Args:
        pair_V, who_V, label_V: the pair, the annotator and the label of each of V votes, as numbers from 0.
        smoothing: votes of every kind that each annotator is taken to have cast before, and as many right ones again.
            It keeps a matrix of few votes from certainty; near 0 it is the paper's estimate.
    """
    pairs, people = int(pair_V.max()) + 1, int(who_V.max()) + 1
    shared_N = np.bincount(pair_V, minlength=pairs) > 1
    teaches_V = shared_N[pair_V]
    posterior_NL = np.zeros((pairs, labels))
    np.add.at(posterior_NL, (pair_V, label_V), 1.0)
    posterior_NL /= posterior_NL.sum(axis=1, keepdims=True)
    for _ in range(ROUNDS):
        # eq. 2.4: the shares of the labels; a pair with one vote only says again what was said.
        prior_L = posterior_NL[shared_N].sum(axis=0) + smoothing
        # Which answer is called a is by chance, so that the share of a among the pairs is chance too. As a prior it
        # would turn round a lone vote.
        prior_L[:2] = prior_L[:2].mean()
        prior_L /= prior_L.sum()
        # eq. 2.3: of the pairs where j is true, the share in which k says l.
        confusion_WLL = np.tile(smoothing * (1 + np.eye(labels)), (people, 1, 1))
        for true in range(labels):
            said = (who_V[teaches_V], np.full_like(label_V[teaches_V], true), label_V[teaches_V])
            np.add.at(confusion_WLL, said, posterior_NL[pair_V[teaches_V], true])
        # Else the side that is seldom true would have a matrix of few votes: the more pairs on one side, the less sure.
        confusion_WLL = tied(confusion_WLL)
        confusion_WLL /= confusion_WLL.sum(axis=2, keepdims=True)
        # eq. 2.5, in logarithms: T_ij is proportional to p_j times the product of pi over the votes on i.
        log_NL = np.tile(np.log(prior_L), (pairs, 1))
        np.add.at(log_NL, pair_V, np.log(confusion_WLL)[who_V, :, label_V])
        found_NL = np.exp(log_NL - log_NL.max(axis=1, keepdims=True))
        found_NL /= found_NL.sum(axis=1, keepdims=True)
        moved = float(np.abs(found_NL - posterior_NL).max())
        posterior_NL = found_NL
        if moved < TOLERANCE:
            break
    return Skene(posterior_NL, confusion_WLL, prior_L)


# ---- verdicts


class Cast(NamedTuple):
    """What counts of a Vote: a record of every vote at once would take ten times the memory."""

    annotator: str
    """All of nobody in particular are one."""
    choice: str
    shown: str | None


def verdicts(votes: Iterable[Vote], rule: Aggregate) -> Iterator[Verdict]:
    """One verdict for each pair that was voted on, in the order in which the votes bring them."""
    by_pair = grouped(votes)
    fingerprint = digest({"judge": NAME, "aggregate": rule, "version": VERSION})
    p = probabilities(by_pair, rule)
    for pair, cast in by_pair.items():
        counts = {label: n for label in LABELS if (n := sum(vote.choice == label for vote in cast))}
        yield Verdict(pair_id=pair, judge=NAME, fingerprint=fingerprint, p_a=p[pair], evidence={"votes": counts})


def sample(votes: Iterable[Vote]) -> Sample | None:
    """How the pair of these votes came to be shown: `unsure` where no vote came about otherwise, for what one of them
    says of a random draw holds for the pair. None: it is not known."""
    found = {vote.sample for vote in votes}
    return "control" if "control" in found else "unsure" if found == {"unsure"} else None


def says(p_a: float) -> Choice:
    """What people decided. It is exact: a narrow majority is no tie."""
    return "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b"


def grouped(votes: Iterable[Vote]) -> dict[str, list[Cast]]:
    """Pair id -> its votes."""
    found: dict[str, list[Cast]] = defaultdict(list)
    for vote in votes:
        who = NOBODY if vote.annotator.startswith(f"{NOBODY}/") else vote.annotator
        found[vote.pair_id].append(Cast(who, vote.choice, vote.shown))
    return dict(found)


def probabilities(by_pair: Mapping[str, Sequence[Cast]], rule: Aggregate) -> dict[str, float]:
    """Pair id -> probability that `a` is better; 0.5 is a tie."""
    if rule == "majority" or not by_pair:
        return {pair: p_majority([vote.choice for vote in votes]) for pair, votes in by_pair.items()}
    found, _ = _skene(by_pair)
    a, b, tie = (LABELS.index(label) for label in LABELS)
    return {
        pair: 0.5 if row[tie] + _SAME >= row.max() or abs(row[a] - row[b]) <= _SAME else float(row[a] + row[tie] / 2)
        for pair, row in zip(by_pair, found.posterior_NL, strict=True)
    }


def _skene(by_pair: Mapping[str, Sequence[Cast]]) -> tuple[Skene, list[str]]:
    """The model of these votes, over a, b and tie, and the annotators in its order."""
    names = sorted({vote.annotator for votes in by_pair.values() for vote in votes})
    number = {name: place for place, name in enumerate(names)}
    rows = [
        (place, number[vote.annotator], LABELS.index(vote.choice))
        for place, votes in enumerate(by_pair.values())
        # In an order of their own, or rounding would let the order of the file decide what is even.
        for vote in sorted(votes, key=lambda vote: (vote.annotator, vote.choice))
    ]
    pair_V, who_V, label_V = np.array(rows, dtype=np.int64).T
    # Where nobody ever said tie, nobody could: then there are two labels.
    labels = 3 if (label_V == LABELS.index("tie")).any() else 2
    found = dawid_skene(pair_V, who_V, label_V, labels)
    if labels == 2:
        padded_NL = np.pad(found.posterior_NL, ((0, 0), (0, 1)))
        found = found._replace(posterior_NL=padded_NL)
    return found, names


# ---- what the votes say about the people


class Annotator(Record):
    """One person, by their votes."""

    name: str
    votes: int
    ties: int
    agreement: float | None
    """Share of the other votes on the same pairs that say what they said. None: nobody else voted there."""
    accuracy: float | None
    """By Dawid and Skene: probability that they say the true label. None: as above."""
    left: float | None
    """Share of their choices of a side that went to the left one, where that is known."""
    left_p: float | None
    """Two-sided probability of a share as far from one half, if the side made no difference (binomial test)."""


class People(Record):
    """What the votes say about whoever cast them."""

    annotators: tuple[Annotator, ...]
    alpha: Estimate | None
    """Krippendorff's, nominal, over pairs with two votes or more; the interval resamples prompts. Of a and b as our
    pairs have them, which is by chance: how often a file's first answer won does not enter."""
    shared: int
    """Pairs with two votes or more."""
    unanimous: int
    """Of those, where all said the same."""


def people(votes: Iterable[Vote], prompts: Mapping[str, str]) -> People:
    """How far people agree, with each other and with themselves.

    Args:
        prompts: pair id -> prompt id.
    """
    by_pair = grouped(votes)
    shared = {pair: cast for pair, cast in by_pair.items() if len(cast) > 1}
    units = [[vote.choice for vote in cast] for cast in shared.values()]
    alpha = clustered(alpha_rows(units), [prompts[pair] for pair in shared], alpha_of) if units else None
    return People(
        annotators=tuple(_annotators(by_pair, shared)),
        alpha=alpha,
        shared=len(shared),
        unanimous=sum(len(set(given)) == 1 for given in units),
    )


def _annotators(by_pair: Mapping[str, Sequence[Cast]], shared: Mapping[str, Sequence[Cast]]) -> Iterable[Annotator]:
    if not by_pair:
        return
    model, names = _skene(by_pair)
    same: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for cast in shared.values():
        for one, other in itertools.permutations(cast, 2):
            met[one.annotator] += 1
            same[one.annotator] += one.choice == other.choice
    own: dict[str, list[Cast]] = defaultdict(list)
    for cast in by_pair.values():
        for vote in cast:
            own[vote.annotator].append(vote)
    for place, name in enumerate(names):
        left, sides = _left(own[name])
        right = np.diag(model.confusion_WLL[place])
        yield Annotator(
            name=name,
            votes=len(own[name]),
            ties=sum(vote.choice == "tie" for vote in own[name]),
            agreement=same[name] / met[name] if met[name] else None,
            accuracy=float(model.prior_L @ right) if met[name] else None,
            left=left / sides if sides else None,
            left_p=binomial_p(left, sides) if sides else None,
        )


def _left(votes: Sequence[Cast]) -> tuple[int, int]:
    """Of the choices of a side whose place is known: how many went to the left, and how many there are."""
    known = [vote for vote in votes if vote.shown is not None and vote.choice != "tie"]
    return sum(vote.choice == str(vote.shown)[0] for vote in known), len(known)


def binomial_p(successes: int, trials: int) -> float:
    """Two-sided p of a fair coin: twice the smaller tail, at most 1."""
    few = min(successes, trials - successes)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) - trials * math.log(2)
        for k in range(few + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(each) for each in logs))
