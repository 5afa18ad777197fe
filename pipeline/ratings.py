"""What a comparison of checkpoints found, and what it comes to in words: records, and pure functions on numbers.

A judge's answer is a probability, and a tie counts one half. Abstentions are in no rate; they are bounded from both
sides instead. Several claims of one judge stand together under Holm's correction.
What is left out: sampling and judging (`pipeline.compare`), how an interval is made (`pipeline.statistics`), and every
picture (`pipeline.report`).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

from pipeline import refusals
from pipeline.errors import JudgeError
from pipeline.records import Pair, Record, Response, Verdict, seed_of
from pipeline.statistics.bradley_terry import Strengths
from pipeline.statistics.judge_error import Corrected
from pipeline.statistics.length_control import LengthCoefficient, LengthControlled
from pipeline.statistics.win_rate import (
    Estimate,
    WinRate,
    clustered_mean,
    detectable,
    excludes_half,
    holm,
    ratio,
    share,
    win_rate,
)

How = Literal["labelled", "labelled in part", "rewarded"]
"""How policies come to be trained to please a judge. In part: it stands in the judge that labelled, as a member of a
panel or the one that people leave the rest to, or a judge that labelled stands in it."""

DID: dict[How, str] = {
    "labelled": "labelled the training data",
    "labelled in part": "had a part in labelling the training data",
    "rewarded": "rewarded policies in training",
}
"""The same in words that follow its name."""


class Comparison(WinRate):
    """One judge on `one` against `other`; the win rate is that of `one`."""

    judge: str
    one: str
    other: str
    ties: int
    """Verdicts of exactly 0.5; they are in the rate."""
    abstained: int
    """Verdicts that were none; they are not in the rate."""
    worst_low: float
    """The rate had `one` lost wherever the judge abstained."""
    worst_high: float
    """The rate had `one` won wherever the judge abstained."""
    bounds_low: float
    """Lower end of the interval, had `one` lost wherever the judge abstained."""
    bounds_high: float
    """Upper end, had it won there: whatever the judge would have said, the rate is between the two."""
    tokens_ratio: float | None
    """Mean tokens of an answer by `one` over those by `other`: how much of a win may be length."""
    p_holm: float
    """`p_value` after Holm's correction over all comparisons of this judge in the same results. `smallest_detectable`
    is under that correction too."""

    def swap(self) -> Self:
        """The same comparison seen from the other side."""
        mirrored = {
            "one": self.other,
            "other": self.one,
            "win_rate": 1 - self.win_rate,
            "low": 1 - self.high,
            "high": 1 - self.low,
            "worst_low": 1 - self.worst_high,
            "worst_high": 1 - self.worst_low,
            "bootstrap_low": 1 - self.bootstrap_high,
            "bootstrap_high": 1 - self.bootstrap_low,
            "bounds_low": 1 - self.bounds_high,
            "bounds_high": 1 - self.bounds_low,
            "tokens_ratio": 1 / self.tokens_ratio if self.tokens_ratio else None,
        }
        return self.model_copy(update=mirrored)


class RewardScore(Record):
    """A checkpoint's answers by a reward model of the run. Policies were trained on it: no win is claimed from it."""

    model: str
    """The train step that made it."""
    score: Estimate
    """Mean over the answers, in standard deviations of the base's own answers to the same prompts, from their mean (of
    the first checkpoint's, where the base is not compared)."""


class TrainingCost(Record):
    """What it took to make a checkpoint in this run. Seconds are of the clock, those of the processes side by side.

    A step that was stopped counts from its last start; verdicts that an earlier run had paid for cost nothing.
    """

    training_seconds: float
    """Of its own train step."""
    peak_memory_bytes: int
    """Of the largest process of that step."""
    upstream: tuple[str, ...]
    """The steps that it stands on, in the order of the work: what it learned from, and what made that."""
    upstream_seconds: float
    """Of all of those."""
    labelling_seconds: float
    """Of those of them that asked the labelling judge: its exam, and the labels."""
    judge_usd: float
    """What judges were charged in those steps and in its own."""


class Checkpoint(Record):
    """What one policy's answers to the held-out prompts look like, whoever judges them, and what it took to make it."""

    name: str
    algorithm: str
    """`base`, or the algorithm that trained it."""
    n_answers: int
    tokens_mean: float | None
    """Tokens of an answer; None where the sampler did not count them."""
    words_mean: float
    finished_share: float | None
    """Share of answers that ended by themselves and were not cut; None where that is unknown."""
    distinct_2: float
    """Distinct word bigrams over word bigrams, all answers together (after Li et al., arXiv:1510.03055)."""
    repetition: float
    """Share of an answer's word 4-grams that occurred in it before, mean over answers."""
    kl: Estimate | None
    """KL(policy || base) in nats per answer, or None where log-probabilities are missing. See `kl_to_base`."""
    refusals: Estimate | None = None
    """Share of answers that refuse, by lists of phrases. See `pipeline.refusals`."""
    rewards: tuple[RewardScore, ...] = ()
    """By each reward model of the run."""
    perplexity: Estimate | None = None
    """Of the answers in `compare.perplexity.files`, which nobody was trained on: exp of the mean NLL of a token, with
    its interval over rows; `n` is tokens and `n_clusters` rows. None: no files are named."""
    cost: TrainingCost | None = None
    """None of the base, and where the times are not known."""


class JudgeInfo(Record):
    """One judge over everything it was asked here, and the two biases that can be read off without truth."""

    name: str
    fingerprint: str
    labelled: bool
    """Policies were trained to please it, as `how` says."""
    how: How | None = None
    """What it had to do with the training. None: nothing."""
    asked: int
    ties: int
    abstained: dict[str, int]
    """Reason -> count."""
    prefers_longer: float | None
    """Share of decided pairs of unequal length (in characters) that the longer answer won."""
    position_a: float | None
    """Share of decided verdicts for side a. Sides are drawn by hash, so a fair judge is near one half."""

    @property
    def tag(self) -> How | None:
        """What it had to do with the training; None: nothing."""
        # Results of before there was a `how` say only that it labelled.
        return (self.how or "labelled") if self.labelled else None


class Results(Record):
    """All that a comparison found: what `results.json` holds. Make it with `Results.of`."""

    headline: str
    checkpoints: tuple[Checkpoint, ...]
    judges: tuple[JudgeInfo, ...]
    comparisons: tuple[Comparison, ...]
    prompts: int
    """Held-out prompts."""
    confidence: float
    """Of every interval, e.g. 0.95."""
    labelling_judge: str | None
    """Name of the judge that labelled the training data, whether or not it also compares."""
    exam: dict[str, Any] | None = None
    """What that judge's exam found (`judges.grading.ExamReport`, as JSON). None: it was not examined."""
    strengths: tuple[Strengths, ...] = ()
    """Bradley-Terry, one a judge; none of a judge that left some checkpoint without an opponent."""
    length_coefficients: tuple[LengthCoefficient, ...] = ()
    """What each judge gives to length."""
    length_controlled: tuple[LengthControlled, ...] = ()
    """Each comparison between answers of one length."""
    corrected: tuple[Corrected, ...] = ()
    """Each comparison as people would have it, where it is known how a judge errs."""

    @classmethod
    def of(
        cls,
        *,
        checkpoints: Sequence[Checkpoint],
        judges: Sequence[JudgeInfo],
        comparisons: Sequence[Comparison],
        prompts: int,
        confidence: float = 0.95,
        labelling_judge: str | None = None,
        strengths: Sequence[Strengths] = (),
    ) -> Self:
        """The results with Holm's correction over each judge's comparisons, and the headline they support."""
        results = cls(
            headline="",
            checkpoints=tuple(checkpoints),
            judges=tuple(judges),
            comparisons=corrected(comparisons, confidence=confidence),
            prompts=prompts,
            confidence=confidence,
            labelling_judge=labelling_judge,
            strengths=tuple(strengths),
        )
        return results.model_copy(update={"headline": headline(results)})

    @property
    def base(self) -> str | None:
        """The checkpoint that the others are measured against."""
        named = (checkpoint.name for checkpoint in self.checkpoints if checkpoint.algorithm == "base")
        return next(named, self.checkpoints[0].name if self.comparisons else None)

    def labelled(self, judge: str) -> bool:
        """Whether policies were trained to please this comparing judge."""
        return self.tag(judge) is not None

    def tag(self, judge: str) -> How | None:
        """What this comparing judge had to do with the training; None: nothing."""
        return next((each.tag for each in self.judges if each.name == judge), None)

    def between(self, one: str, other: str | None) -> tuple[Comparison, ...]:
        """Every judge's comparison of the two, in the order of `judges`, seen from `one`."""
        seen = [found for found in self.comparisons if (found.one, found.other) == (one, other)]
        seen += [found.swap() for found in self.comparisons if (found.other, found.one) == (one, other)]
        order = {judge.name: place for place, judge in enumerate(self.judges)}
        return tuple(sorted(seen, key=lambda found: order.get(found.judge, len(order))))


def schema() -> dict[str, Any]:
    """The JSON schema of results.json."""
    return {**Results.model_json_schema(mode="serialization"), "title": "prefloop results"}


def compare_checkpoints(
    judge: str,
    one: Checkpoint,
    other: Checkpoint,
    rows: Iterable[tuple[str, float | None]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """One judge's comparison of two checkpoints.

    Args:
        rows: (prompt id, probability that `one` is better, or None where the judge abstained), one per verdict.

    Raises:
        JudgeError: the judge answered nothing, so there is no rate.
    """
    rows = list(rows)
    decided = [(prompt, p) for prompt, p in rows if p is not None]
    if not decided:
        raise JudgeError(
            f"judge {judge!r}, {one.name} against {other.name}: it abstained on all {len(rows)} verdicts, "
            "so there is nothing to compare; read the reasons in its verdicts, or compare with another judge"
        )
    scores, abstained = [p for _, p in decided], len(rows) - len(decided)
    # Sorted: the same prompts are drawn whichever checkpoint is named first, so that the intervals mirror exactly.
    drawn_with = seed_of(seed, judge, *sorted((one.name, other.name)))
    rate = win_rate(scores, [prompt for prompt, _ in decided], confidence=confidence, seed=drawn_with)
    lost, won = (_had(rows, instead, confidence, drawn_with) if abstained else rate for instead in (0.0, 1.0))
    return Comparison(
        **rate.model_dump(),
        judge=judge,
        one=one.name,
        other=other.name,
        ties=scores.count(0.5),
        abstained=abstained,
        worst_low=lost.win_rate,
        worst_high=won.win_rate,
        bounds_low=lost.low,
        bounds_high=won.high,
        tokens_ratio=one.tokens_mean / other.tokens_mean if one.tokens_mean and other.tokens_mean else None,
        p_holm=rate.p_value,
    )


def _had(rows: Sequence[tuple[str, float | None]], instead: float, confidence: float, seed: int) -> WinRate:
    """The rate had the judge said this wherever it abstained."""
    scores = [instead if p is None else p for _, p in rows]
    return win_rate(scores, [prompt for prompt, _ in rows], confidence=confidence, seed=seed)


def corrected(comparisons: Sequence[Comparison], *, confidence: float) -> tuple[Comparison, ...]:
    """The comparisons with `p_holm` over those of the same judge, and `decisive` and `smallest_detectable` by it."""
    adjusted: dict[int, float] = {}
    together: dict[str, int] = {}
    for judge in {found.judge for found in comparisons}:
        places = [place for place, found in enumerate(comparisons) if found.judge == judge]
        together[judge] = len(places)
        p_values = holm([comparisons[place].p_value for place in places])
        adjusted.update(zip(places, p_values, strict=True))
    return tuple(
        found.model_copy(
            update={
                "p_holm": adjusted[place],
                "smallest_detectable": detectable(
                    found.standard_error, found.n_clusters - 1, confidence, together[found.judge]
                ),
                "decisive": excludes_half(found.low, found.high) and adjusted[place] < 1 - confidence,
            }
        )
        for place, found in enumerate(comparisons)
    )


def describe(
    name: str,
    algorithm: str,
    responses: Mapping[str, Sequence[Response]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Checkpoint:
    """What a checkpoint's answers look like, from its responses by prompt id.

    Words are what white space separates, lower-cased. A number that some answer lacks is None and not a mean over
    the rest: answers that lack it are seldom a random part.
    """
    answers = [response for sampled in responses.values() for response in sampled]
    if not answers:
        raise ValueError(f"checkpoint {name!r} has no answers to describe")
    prompts = [prompt for prompt, sampled in responses.items() for _ in sampled]
    refused = [float(refusals.phrase_of_refusal(answer.text) is not None) for answer in answers]
    words = [answer.text.casefold().split() for answer in answers]
    return Checkpoint(
        name=name,
        algorithm=algorithm,
        n_answers=len(answers),
        tokens_mean=_mean_if_known([answer.n_tokens for answer in answers]),
        words_mean=sum(map(len, words)) / len(words),
        finished_share=_mean_if_known([answer.finished for answer in answers]),
        distinct_2=distinct(words, 2),
        repetition=sum(repetition(answer) for answer in words) / len(words),
        kl=kl_to_base(responses, confidence=confidence, seed=seed_of(seed, "kl", name)),
        refusals=share(refused, prompts, confidence=confidence, seed=seed_of(seed, "refusals", name)),
    )


def kl_to_base(
    responses: Mapping[str, Sequence[Response]], *, confidence: float = 0.95, seed: int = 0
) -> Estimate | None:
    """KL(policy || base) in nats per answer: the mean of log p - log p_base over the policy's own samples.

    This is the k1 Monte-Carlo estimate (Schulman, "Approximating KL divergence", 2020): unbiased for answers sampled
    at temperature 1 from the whole vocabulary, and it may come out below zero by chance. None unless every
    answer has both log-probabilities and both are finite.
    """
    differences, clusters = [], []
    for prompt, sampled in responses.items():
        for answer in sampled:
            if answer.logprob is None or answer.ref_logprob is None:
                return None
            differences.append(answer.logprob - answer.ref_logprob)
            clusters.append(prompt)
    if not differences or not all(map(math.isfinite, differences)):
        return None
    return clustered_mean(differences, clusters, confidence=confidence, seed=seed)


def reward_score(
    model: str,
    scores: Sequence[tuple[str, float]],
    base: Sequence[float],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> RewardScore:
    """A checkpoint's answers by a reward model.

    Args:
        scores: (prompt id, raw score) of each answer.
        base: raw scores of the base's answers. Where all are equal, scores are measured in their own unit.
    """
    mean = math.fsum(base) / len(base)
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in base) / max(1, len(base) - 1))
    normalised = [(score - mean) / (deviation or 1.0) for _, score in scores]
    found = clustered_mean(normalised, [prompt for prompt, _ in scores], confidence=confidence, seed=seed)
    return RewardScore(model=model, score=found)


def perplexity(rows: Sequence[tuple[float, int]], *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """exp of the mean NLL of a token, with its interval over rows; the standard error by the delta method.

    Args:
        rows: (sum of the NLLs in nats, tokens) of each row.
    """
    nll, tokens = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    found = ratio(nll, tokens, confidence=confidence, seed=seed)
    value = math.exp(found.value)
    spread = {"low": math.exp(found.low), "high": math.exp(found.high), "standard_error": value * found.standard_error}
    return found.model_copy(update={"value": value, **spread})


def distinct(answers: Iterable[Sequence[str]], n: int) -> float:
    """Distinct n-grams over n-grams of all answers together; 0 where no answer has n words.

    It falls as answers are added, so only checkpoints with as many answers can be compared by it.
    """
    grams = Counter(gram for words in answers for gram in _grams(words, n))
    return len(grams) / grams.total() if grams else 0.0


def repetition(words: Sequence[str], n: int = 4) -> float:
    """Share of an answer's n-grams that occurred in it before; 0 for an answer of fewer than n words."""
    grams = _grams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def describe_judge(
    name: str, fingerprint: str, *, how: How | None, pairs: Sequence[Pair], verdicts: Sequence[Verdict]
) -> JudgeInfo:
    """One judge over the pairs it was asked about and its verdicts, in the same order.

    Args:
        how: what it had to do with the training. None: nothing.
    """
    decided = [
        (pair, verdict.p_a > 0.5)
        for pair, verdict in zip(pairs, verdicts, strict=True)
        if verdict.p_a is not None and not verdict.is_tie
    ]
    longer = [(len(pair.a.text) > len(pair.b.text)) == for_a for pair, for_a in decided if _lengths_differ(pair)]
    return JudgeInfo(
        name=name,
        fingerprint=fingerprint,
        labelled=how is not None,
        how=how,
        asked=len(verdicts),
        ties=sum(verdict.is_tie for verdict in verdicts),
        abstained=dict(sorted(Counter(str(v.abstained) for v in verdicts if v.abstained is not None).items())),
        prefers_longer=sum(longer) / len(longer) if longer else None,
        position_a=sum(for_a for _, for_a in decided) / len(decided) if decided else None,
    )


def headline(results: Results) -> str:
    """The result in one or two plain sentences: the best checkpoint against the base, then against the runner-up."""
    ranked = _ranked(results)
    if not ranked:
        return "No checkpoint was compared."
    sentences = [_sentence(results, results.between(ranked[0], results.base), first=True)]
    if len(ranked) > 1:
        direct = results.between(ranked[0], ranked[1])
        sentences.append(_sentence(results, direct or results.between(ranked[1], results.base), first=False))
    return " ".join(sentences)


def percent(share: float) -> str:
    """0.6312 -> `63.1 %`."""
    return f"{100 * share:.1f} %"


def interval(low: float, high: float) -> str:
    """(0.5841, 0.676) -> `[58.4, 67.6]`, in percent."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _ranked(results: Results) -> list[str]:
    """Checkpoints that were compared with the base, best first.

    By one judge that had nothing to do with the training, because what a policy was trained to please cannot rank it:
    by the first of those that compared the most of them. What it did not compare comes last.
    """
    found = {each.name: results.between(each.name, results.base) for each in results.checkpoints}
    rates: dict[str, dict[str, float]] = {judge.name: {} for judge in results.judges}
    for name, comparisons in found.items():
        for each in comparisons:
            rates.setdefault(each.judge, {})[name] = each.win_rate
    independent = {judge: own for judge, own in rates.items() if own and not results.labelled(judge)}
    by = max((independent or rates).values(), key=len, default={})
    return sorted((name for name in found if found[name]), key=lambda name: -by.get(name, -math.inf))


def _sentence(results: Results, found: Sequence[Comparison], *, first: bool) -> str:
    """One comparison by all its judges, with the claim that they support together."""
    one, other = found[0].one, found[0].other
    won = [comparison.win_rate > 0.5 for comparison in found if comparison.decisive]
    split = 0 < len(won) < len(found)
    parts = []
    for place, comparison in enumerate(found):
        stated = _stated(comparison, of_prompts=first and place == 0)
        # Who a judge is has been said once the first sentence is over.
        role = _role(results, comparison, short=place > 0) if first else ""
        parts.append(stated + role + (" (not decisive)" if split and not comparison.decisive else ""))
    stated = "; ".join(parts)
    if not won:
        points = math.ceil(100 * max(comparison.smallest_detectable for comparison in found))
        needed = f"the smallest difference this sample could show is {points} points"
        return f"{one} against {other} is not decisive: {stated}; {needed}."
    if len(set(won)) > 1:
        return f"The judges contradict each other on {one} against {other}: {stated}."
    return f"{one} {'beats' if won[0] else 'is worse than'} {other}{' by some judges only' if split else ''}: {stated}."


def _stated(comparison: Comparison, *, of_prompts: bool) -> str:
    counted = f" of {comparison.n_clusters} held-out prompts" if of_prompts else ""
    bounds = interval(comparison.low, comparison.high)
    return f"{percent(comparison.win_rate)}{counted} {bounds} by {comparison.judge}"


def _role(results: Results, comparison: Comparison, *, short: bool) -> str:
    if how := results.tag(comparison.judge):
        return f", which also {DID[how]}"
    if results.labelling_judge is None:
        return ""
    return ", which did not" if short else ", which did not label the training data"


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _mean_if_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _lengths_differ(pair: Pair) -> bool:
    return len(pair.a.text) != len(pair.b.text)
