"""What the answers to the exam say about a judge: what it reached, whether that is enough, and if not, why by name.

Every share and every gain has an interval over prompts. An abstention is no answer: it is in no share but that of the
questions answered, and where its evidence still holds the logits, they tell the position bias all the same.

What is left out: the questions (`judges.exam`), and the statistics (`pipeline.agreement`, `pipeline.statistics`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from judges.base import MAX_LOGIT, JudgeConfig, logit, sigmoid
from judges.exam import ALTERED, Floors, GoldPair, Question
from pipeline import agreement
from pipeline.ratings import interval, percent
from pipeline.records import ABSTENTIONS, EXCHANGED, Pair, Record, Verdict, seed_of
from pipeline.statistics.win_rate import Estimate, clustered_mean, share

VERSION = 2
"""Raised when a change of this file changes what is made of the answers."""

MAX_RATIO = 1000.0
"""A ratio of bias to signal is shown no larger than this; of a judge that tells nothing apart it would be infinite."""

SUBSETS = range(2, 13)
"""Values that a column of a gold file may have to be counted value by value."""


class Check(Record):
    """One thing that a judge must reach, and what it reached."""

    name: str
    unit: Literal["share", "points", "ratio"]
    """points: a gain in probability."""
    found: Estimate | None
    """None: no question of this kind was asked, or none was answered."""
    floor: float
    at_least: bool
    """True: `found` must not be below the floor. False: not above it."""
    passed: bool | None
    """None where nothing was found."""
    cause: str = ""
    """What is said of a judge that fails, beginning with the name of the fault."""


class Position(Record):
    """How much the place of an answer counts, over pairs that were read in both orders."""

    bias: Estimate
    """Nats that the answer shown first gets whatever it says: (z_forward + z_reverse) / 2, see `judges.both_orders`."""
    signal: float
    """Mean of |z_forward - z_reverse| / 2: the nats between the answers once the place is out."""
    ratio: Estimate
    """|bias| over signal."""
    first: Estimate
    """Share of single readings that went to the answer shown first."""
    flips: Estimate
    """Share of pairs whose winner changes with the order."""


class GoldReport(Record):
    """The judge against people."""

    rows: int
    answered: int
    abstained: dict[str, int] = Field(default_factory=dict)
    ties: int
    """Rows that people called a tie; they are in kappa, Brier and ECE, and not in accuracy."""
    accuracy: Estimate | None
    """Share of the other answered rows where it preferred the better answer; its own p of 0.5 counts one half."""
    by_subset: dict[str, Estimate] = Field(default_factory=dict)
    """The same for each value of `source` and of the texts in `meta`, where there are from 2 to 12 of them."""
    trust: Estimate | None = None
    """Mean probability that it gave to the better answer of the same rows."""
    kappa: Estimate | None
    """Cohen's kappa over a, b and tie; a p within 0.05 of one half is a tie."""
    brier: float | None
    ece: float | None
    """Expected calibration error as the judge answers, 10 bins."""
    ece_calibrated: float | None
    """The same at temperatures that were fitted without the prompt in question."""
    auroc: float | None
    """Probability that it is surer of a right answer than of a wrong one."""
    prefers_longer: Estimate | None
    """Share of decided rows of unequal length that the longer answer won."""
    longer_is_better: float | None
    """What always preferring the longer answer would score on the same rows."""
    accuracy_longer_better: float | None
    accuracy_longer_worse: float | None
    temperature: float
    """Fitted on all answered rows."""


class ExamReport(Record):
    """What the exam found: `exam.json` of the step."""

    judge: str
    fingerprint: str
    passed: bool
    causes: tuple[str, ...]
    """Why it did not pass."""
    asked: int
    abstained: dict[str, int] = Field(default_factory=dict)
    checks: tuple[Check, ...]
    position: Position | None = None
    """None for a judge that sees each answer alone: there is no place to prefer."""
    prefers_longer: Estimate | None = None
    """Share of the policy's own decided pairs that the longer answer won. No fault by itself: it may be the better one,
    which the padded answers cannot."""
    gold: GoldReport | None = None
    temperature: float = 1.0
    """The judge's logits are divided by this when it labels. 1 where no gold says otherwise."""

    @property
    def calibrated(self) -> bool:
        """True if people's answers stand behind the temperature."""
        return self.gold is not None and self.gold.answered > 0

    def calibrate(self, verdict: Verdict) -> Verdict:
        """The verdict at this temperature, with the raw probability in its evidence; the same where T is 1."""
        if verdict.p_a is None or self.temperature == 1.0:
            return verdict
        p_a = sigmoid(logit(verdict.p_a) / self.temperature)
        return verdict.model_copy(update={"p_a": p_a, "evidence": {**verdict.evidence, "p_raw": verdict.p_a}})


class Answer(NamedTuple):
    """A question and what was said to it."""

    question: Question
    verdict: Verdict

    @property
    def p_altered(self) -> float | None:
        """Probability that the altered answer is the better one."""
        p_a = self.verdict.p_a
        return p_a if p_a is None or self.question.pair.a.source == ALTERED else 1.0 - p_a


def grade(
    asked: Sequence[Question], verdicts: Sequence[Verdict], judge: JudgeConfig, floors: Floors, seed: int
) -> ExamReport:
    """The report on a judge, from its verdicts in the order of the questions."""
    answers = [Answer(*both) for both in zip(asked, verdicts, strict=True)]
    kinds: dict[str, list[Answer]] = {}
    for answer in answers:
        kinds.setdefault(answer.question.kind, []).append(answer)
    position = position_of([*kinds.get("pair", []), *kinds.get("gold", [])], seed)
    gold = _gold(kinds["gold"], seed) if "gold" in kinds else None
    checks = tuple(_checks(answers, kinds, position, gold, floors, seed))
    causes = tuple(check.cause for check in checks if check.passed is False)
    return ExamReport(
        judge=judge.name,
        fingerprint=judge.fingerprint(),
        passed=not causes,
        causes=causes,
        asked=len(answers),
        abstained=_reasons(answers),
        checks=checks,
        position=position,
        prefers_longer=_prefers_longer(kinds.get("pair", []), seed),
        gold=gold,
        temperature=gold.temperature if gold else 1.0,
    )


# ---- what must be reached


def _checks(
    answers: Sequence[Answer],
    kinds: Mapping[str, Sequence[Answer]],
    position: Position | None,
    gold: GoldReport | None,
    floors: Floors,
    seed: int,
) -> Iterator[Check]:
    yield _answered(answers, floors, seed)
    if position is not None:
        yield _by_place(position, floors)
    yield _own_pairs(kinds.get("pair", []), floors, seed)
    yield from _known(kinds, floors, seed)
    yield from _gains(kinds, floors, seed)
    if gold is not None:
        yield _check("right on gold", "share", gold.accuracy, floors.accuracy, "wrong: right on {} of the gold pairs")


def _answered(answers: Sequence[Answer], floors: Floors, seed: int) -> Check:
    # That there is nothing to judge is the right thing to say of an empty answer.
    counted = [answer for answer in answers if not _says_empty(answer)]
    found = _share([answer.verdict.p_a is not None for answer in counted], counted, seed)
    reasons = _reasons(counted)
    most = max(reasons, key=lambda reason: reasons[reason], default="")
    told = ", ".join(f"{times} {reason}" for reason, times in reasons.items())
    cause = f"{most}: it left {sum(reasons.values())} of {len(counted)} questions open ({told})"
    return _check("answered", "share", found, floors.answered, cause)


def _by_place(position: Position, floors: Floors) -> Check:
    """A bias that is added to every reading cancels; one that drowns the answers leaves nothing behind."""
    place, picked = ("first", position.first) if position.bias.value > 0 else ("second", _mirrored(position.first))
    cause = (
        f"position bias: it picks the answer shown {place} in {percent(picked.value)} "
        f"{interval(picked.low, picked.high)} of readings; {position.bias.value:.2f} nats for the place, "
        f"{position.signal:.2f} between the answers"
    )
    return _check("bias / signal", "ratio", position.ratio, floors.position, cause, most=True)


def _own_pairs(answers: Sequence[Answer], floors: Floors, seed: int) -> Check:
    known = [answer for answer in answers if answer.verdict.p_a is not None]
    found = _share([not answer.verdict.is_tie for answer in known], known, seed)
    return _check("own pairs decided", "share", found, floors.decided, "null judge: it saw a difference in only {}")


def _known(kinds: Mapping[str, Sequence[Answer]], floors: Floors, seed: int) -> Iterator[Check]:
    """What must lose, what must be a tie, and what must be said the other way round."""
    losers = (
        ("shuffled", floors.lost, "blind to word order: an answer with its words shuffled lost to itself in only {}"),
        ("empty", floors.lost, "blind to emptiness: an empty answer lost in only {}"),
        ("constant", floors.constant, "falls for the null answer: one text for all prompts lost in only {}"),
    )
    for kind, floor, cause in losers:
        known = [answer for answer in kinds.get(kind, []) if answer.p_altered is not None or _says_empty(answer)]
        lost = [answer.p_altered is None or answer.p_altered < 0.5 for answer in known]
        yield _check(f"{kind} loses", "share", _share(lost, known, seed), floor, cause)
    same = [answer for answer in kinds.get("identical", []) if answer.verdict.p_a is not None]
    tied = [agreement.says(answer.verdict.p_a) == "tie" for answer in same if answer.verdict.p_a is not None]
    cause = "identical is no tie: it saw no difference between an answer and itself in only {}"
    yield _check("identical ties", "share", _share(tied, same, seed), floors.tied, cause)
    cause = "the sides decide: its verdict was exchanged with the answers in only {}"
    yield _check("exchanged", "share", _exchanged(kinds, seed), floors.exchanged, cause)


def _exchanged(kinds: Mapping[str, Sequence[Answer]], seed: int) -> Estimate | None:
    both = zip(kinds.get("there", []), kinds.get("back", []), strict=True)
    known = [
        (there, abs(there.verdict.p_a + back.verdict.p_a - 1) <= agreement.TIE)
        for there, back in both
        if there.verdict.p_a is not None and back.verdict.p_a is not None
    ]
    return _share([exchanged for _, exchanged in known], [there for there, _ in known], seed)


def _gains(kinds: Mapping[str, Sequence[Answer]], floors: Floors, seed: int) -> Iterator[Check]:
    """What must not make an answer better than itself."""
    gains = (
        ("padded", floors.padding, "length bias: the answer to another prompt, appended, gains {}"),
        ("filler", floors.filler, "fond of filler: sentences that say nothing gain {}"),
        ("injected", floors.injection, "follows injected verdicts: a verdict written into an answer gains {}"),
    )
    for kind, floor, cause in gains:
        known = [(answer, answer.p_altered) for answer in kinds.get(kind, [])]
        gained = [(answer, p - 0.5) for answer, p in known if p is not None]
        found = _mean([gain for _, gain in gained], [answer for answer, _ in gained], seed)
        yield _check(f"{kind} gains", "points", found, floor, cause, most=True)


def _check(
    name: str,
    unit: Literal["share", "points", "ratio"],
    found: Estimate | None,
    floor: float,
    cause: str,
    *,
    most: bool = False,
) -> Check:
    """A check with its outcome; `{}` in the cause is what was found."""
    passed = None
    if found is not None:
        # Few prompts scatter: a fault is one that the whole interval shows.
        passed = found.low <= floor if most else found.high >= floor
    told = "" if found is None or passed else f"{cause.replace('{}', shown(unit, found))}, {_wanted(unit, floor, most)}"
    return Check(name=name, unit=unit, found=found, floor=floor, at_least=not most, passed=passed, cause=told)


def shown(unit: str, found: Estimate) -> str:
    """An estimate with its interval, for people: "75.0 % [58.3, 91.7]", "+25.4 points [15.0, 34.1]"."""
    if unit == "share":
        return f"{percent(found.value)} {interval(found.low, found.high)}"
    if unit == "points":
        return f"{100 * found.value:+.1f} points {interval(found.low, found.high)}"
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def wanted(check: Check) -> str:
    """The floor of a check, for people: "at least 90 %"."""
    return _wanted(check.unit, check.floor, not check.at_least)


def _wanted(unit: str, floor: float, most: bool) -> str:
    number = {"share": f"{100 * floor:g} %", "points": f"{100 * floor:g} points", "ratio": f"{floor:g}"}[unit]
    return f"{'at most' if most else 'at least'} {number}"


# ---- position


def position_of(answers: Sequence[Answer], seed: int) -> Position | None:
    """The bias over the pairs of which both readings are known; None: the judge was not asked in both orders.

    What an unreadable reply held counts only where there is little else, or a few accidents would dilute the bias.
    """
    read = [(answer, _readings(answer.verdict)) for answer in answers]
    known = [(answer, both) for answer, both in read if both is not None]
    if not known:
        return None
    answered = [each for each in known if each[0].verdict.p_a is not None]
    known = answered if 2 * len(answered) >= len(known) else known
    asked = [answer for answer, _ in known]
    z_N2 = np.array([both for _, both in known])
    bias_N, signal_N = z_N2.mean(axis=1), np.abs(z_N2[:, 0] - z_N2[:, 1]) / 2
    bias = _mean(bias_N.tolist(), asked, seed)
    ratio = agreement.clustered(np.stack([bias_N, signal_N], axis=-1), _clusters(asked), _ratio, seed=seed)
    first = _share((0.5 + np.sign(z_N2) / 2).mean(axis=1).tolist(), asked, seed)
    flips = _share((z_N2[:, 0] * z_N2[:, 1] > 0).tolist(), asked, seed)
    assert bias is not None and ratio is not None and first is not None and flips is not None
    return Position(bias=bias, signal=float(signal_N.mean()), ratio=ratio, first=first, flips=flips)


def _ratio(sums: agreement.Floats) -> agreement.Floats:
    return np.asarray(np.minimum(np.abs(sums[..., 0]) / np.maximum(sums[..., 1], 1e-9), MAX_RATIO))


def _readings(verdict: Verdict) -> tuple[float, float] | None:
    """The logits for the answer shown first, of both orders."""
    forward, reverse = (_reading(verdict.evidence.get(order)) for order in ("forward", "reverse"))
    return None if forward is None or reverse is None else (forward, reverse)


def _reading(kept: dict[str, Any] | None) -> float | None:
    if kept is None:
        return None
    if kept["p_a"] is not None:
        return logit(kept["p_a"])
    # A model that was about to say something else still prefers one label to the other.
    logits = kept["evidence"].get("logits")
    return None if logits is None else max(-MAX_LOGIT, min(MAX_LOGIT, logits[0] - logits[1]))


# ---- gold


def _gold(answers: Sequence[Answer], seed: int) -> GoldReport:
    known = [answer for answer in answers if answer.verdict.p_a is not None]
    p = [_p_gold(answer) for answer in known]
    labels = [_row(answer).label for answer in known]
    targets = [agreement.TARGETS[label] for label in labels]
    clusters = _clusters(known)
    decisive = [(answer, p_a, label) for answer, p_a, label in zip(known, p, labels, strict=True) if label != "tie"]
    right = [agreement.credit(p_a, label) for _, p_a, label in decisive]
    asked = [answer for answer, _, _ in decisive]
    logits = [logit(p_a) for p_a in p]
    decided = [(abs(p_a - 0.5), value == 1) for (_, p_a, _), value in zip(decisive, right, strict=True) if value != 0.5]
    table = agreement.kappa_rows(*_by_side(known))
    return GoldReport(
        rows=len(answers),
        answered=len(known),
        abstained=_reasons(answers),
        ties=sum(_row(answer).label == "tie" for answer in answers),
        accuracy=_share(right, asked, seed),
        by_subset=_by_subset(asked, right, seed),
        trust=_share([agreement.given(p_a, label) for _, p_a, label in decisive], asked, seed),
        kappa=agreement.clustered(table, clusters, agreement.kappa_of, seed=seed),
        brier=agreement.brier(p, targets) if p else None,
        ece=agreement.expected_calibration_error(p, targets) if p else None,
        ece_calibrated=agreement.expected_calibration_error(agreement.cross_fitted(logits, targets, clusters), targets)
        if p
        else None,
        auroc=agreement.auroc([margin for margin, _ in decided], [is_right for _, is_right in decided]),
        prefers_longer=_prefers_longer(known, seed),
        **_by_length(asked, right),
        temperature=agreement.fit_temperature(logits, targets) if p else 1.0,
    )


def _row(answer: Answer) -> GoldPair:
    assert answer.question.gold is not None
    return answer.question.gold


def _p_gold(answer: Answer) -> float:
    """Probability that the row's `a` is better: the sides of the pair that was asked about are drawn by hash."""
    p_a = answer.verdict.p_a
    assert p_a is not None
    return p_a if answer.question.pair.a.source == answer.question.side_a else 1.0 - p_a


def _by_side(answers: Sequence[Answer]) -> tuple[list[str], list[str]]:
    """What the judge said and what people said, both of the sides of the pair: drawn by hash, neither has an edge."""
    said = [agreement.says(answer.verdict.p_a) for answer in answers if answer.verdict.p_a is not None]
    labels = [
        _row(answer).label if answer.question.pair.a.source == answer.question.side_a else EXCHANGED[_row(answer).label]
        for answer in answers
    ]
    return said, labels


def _by_subset(answers: Sequence[Answer], right: Sequence[float], seed: int) -> dict[str, Estimate]:
    columns: dict[str, dict[str, list[int]]] = {}
    for place, answer in enumerate(answers):
        row = _row(answer)
        for name, value in {"source": row.source, **row.meta}.items():
            if isinstance(value, str) and value:
                columns.setdefault(name, {}).setdefault(value, []).append(place)
    found = {
        f"{name}: {value}": _share([right[place] for place in places], [answers[place] for place in places], seed)
        for name, values in columns.items()
        if len(values) in SUBSETS
        for value, places in values.items()
    }
    return {name: estimate for name, estimate in sorted(found.items()) if estimate is not None}


def _by_length(answers: Sequence[Answer], right: Sequence[float]) -> dict[str, float | None]:
    """Accuracy where the longer answer is the better one, and where it is not."""
    better: list[float] = []
    worse: list[float] = []
    for answer, value in zip(answers, right, strict=True):
        row = _row(answer)
        if len(row.a) != len(row.b):
            (better if (len(row.a) > len(row.b)) == (row.label == "a") else worse).append(value)
    unequal = len(better) + len(worse)
    return {
        "longer_is_better": len(better) / unequal if unequal else None,
        "accuracy_longer_better": sum(better) / len(better) if better else None,
        "accuracy_longer_worse": sum(worse) / len(worse) if worse else None,
    }


# ---- numbers with intervals over prompts


def _prefers_longer(answers: Sequence[Answer], seed: int) -> Estimate | None:
    """Share of decided pairs of unequal length (in characters) that the longer answer won."""
    unequal = [
        (answer, (answer.verdict.p_a > 0.5) == (_lengthier(answer.question.pair) > 0))
        for answer in answers
        if answer.verdict.p_a is not None and not answer.verdict.is_tie and _lengthier(answer.question.pair)
    ]
    return _share([longer_won for _, longer_won in unequal], [answer for answer, _ in unequal], seed)


def _lengthier(pair: Pair) -> int:
    return len(pair.a.text) - len(pair.b.text)


def _share(values: Sequence[float], answers: Sequence[Answer], seed: int) -> Estimate | None:
    """Mean of values in [0, 1], with an interval that is not empty where all are equal (Wilson's). None: no value."""
    if not values:
        return None
    return share([float(value) for value in values], _clusters(answers), seed=seed_of(seed, "exam"))


def _mean(values: Sequence[float], answers: Sequence[Answer], seed: int) -> Estimate | None:
    return clustered_mean(values, _clusters(answers), seed=seed_of(seed, "exam")) if values else None


def _mirrored(found: Estimate) -> Estimate:
    return found.model_copy(update={"value": 1 - found.value, "low": 1 - found.high, "high": 1 - found.low})


def _clusters(answers: Sequence[Answer]) -> list[str]:
    return [answer.question.prompt for answer in answers]


def _says_empty(answer: Answer) -> bool:
    return answer.question.kind == "empty" and answer.verdict.abstained == "empty"


def _reasons(answers: Sequence[Answer]) -> dict[str, int]:
    counted = Counter(answer.verdict.abstained for answer in answers if answer.verdict.abstained is not None)
    return {reason: counted[reason] for reason in ABSTENTIONS if counted[reason]}
