"""The win rates of a comparison at equal length, and as people would have them: from what the run has asked already.

    phi     what a judge gives to length: from its labels of the policy's own answers, so of the judge that labelled
    people  votes on the very pairs of the comparison, where the `human` judge is among those that compare, but those
            on pairs that were asked about for a judge's doubt; else how often a judge is right on votes that nobody was
            trained on, or on the gold file of its exam

Nobody is asked anything. What is left out: the statistics (`pipeline.statistics`).
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

from judges import human
from judges.grading import ExamReport
from pipeline import crowd, store
from pipeline.agreement import TARGETS, AgreementReport
from pipeline.ratings import Comparison, Results
from pipeline.records import Pair, Verdict
from pipeline.statistics.judge_error import Corrected, prediction_powered, rogan_gladen
from pipeline.statistics.length_control import LengthCoefficient, coefficient, controlled, relative
from pipeline.statistics.win_rate import Estimate
from pipeline.worker import Job


class Match(NamedTuple):
    """One judge's answer on one pair, seen from one of the two."""

    pair: str
    prompt: str
    p: float
    """Probability that its answer is better."""
    difference: float
    """d of its answer against the other, in characters."""
    same: bool
    """Whether both answers are one text: a tie, about which nobody is asked."""


def adjusted(job: Job, results: Results, exam: ExamReport | None, people: AgreementReport | None) -> Results:
    """The results of the compare step with `length_coefficients`, `length_controlled` and `corrected`."""
    pairs = {pair.id: pair for pair in store.read_jsonl(job.inputs["compare"] / "pairs.jsonl", Pair)}
    verdicts = list(store.read_jsonl(job.inputs["compare"] / "verdicts.jsonl", Verdict))
    said: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.fingerprint, []).append(verdict)
    matches = {judge.name: said.get(judge.fingerprint, []) for judge in results.judges}
    seen = [
        (found, list(_matches(pairs, matches.get(found.judge, ()), found.one, found.other)))
        for found in results.comparisons
    ]
    coefficients = {judge.name: _coefficient(job, judge.name, judge.fingerprint) for judge in results.judges}
    trust = _trust(results, exam, people)
    votes, chosen = voted(verdicts), placed_by_doubt(verdicts)
    corrected = (_corrected(found, rows, pairs, votes, chosen, trust, results.confidence) for found, rows in seen)
    return results.model_copy(
        update={
            "length_coefficients": tuple(coefficients.values()),
            "length_controlled": tuple(
                controlled(
                    found.one,
                    found.other,
                    coefficients[found.judge],
                    [row.p for row in rows],
                    [row.difference for row in rows],
                    [row.prompt for row in rows],
                    confidence=results.confidence,
                )
                for found, rows in seen
            ),
            "corrected": tuple(each for each in corrected if each is not None),
        }
    )


def voted(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Pair id -> what people said of it: 1 for a, 0 for b, one half for a tie."""
    found = {verdict.pair_id: verdict.evidence["people"]["p_a"] for verdict in verdicts if _by_people(verdict)}
    return {pair: TARGETS[crowd.says(p_a)] for pair, p_a in found.items()}


def placed_by_doubt(verdicts: Iterable[Verdict]) -> set[str]:
    """Ids of the pairs that people were asked about because a judge was unsure of them: no sample of the others."""
    said = (verdict for verdict in verdicts if _by_people(verdict))
    return {verdict.pair_id for verdict in said if verdict.evidence["people"].get("sample") == "unsure"}


def _by_people(verdict: Verdict) -> bool:
    return verdict.evidence.get("decided_by") == human.NAME


def _matches(pairs: Mapping[str, Pair], verdicts: Iterable[Verdict], one: str, other: str) -> Iterator[Match]:
    for verdict in verdicts:
        pair = pairs[verdict.pair_id]
        # A person's vote is the truth here, and no judge's answer.
        if verdict.p_a is not None and {pair.a.source, pair.b.source} == {one, other} and not _by_people(verdict):
            d = relative(len(pair.a.text), len(pair.b.text))
            seen = (verdict.p_a, d) if pair.a.source == one else (1.0 - verdict.p_a, -d)
            yield Match(pair.id, pair.prompt.id, *seen, same=pair.a.text == pair.b.text)


def _coefficient(job: Job, judge: str, fingerprint: str) -> LengthCoefficient:
    """phi, from the labels if they are this judge's."""
    labels = job.inputs.get("label")
    if labels is None or store.read_json(labels / "summary.json").get("judge_fingerprint") != fingerprint:
        why = "it was not asked about two answers by one policy"
        return LengthCoefficient(
            judge=judge, value=None, standard_error=None, n=0, n_clusters=0, not_identified=why
        )  # fmt: skip
    rows = list(_own(job))
    return coefficient(judge, [p for p, _, _ in rows], [d for _, d, _ in rows], [prompt for _, _, prompt in rows])


def _own(job: Job) -> Iterator[tuple[float, float, str]]:
    """(p, d, prompt) of every pair of answers by one policy that was labelled, as the judge said it."""
    pairs = store.read_jsonl(job.inputs["generate"] / "pairs.jsonl", Pair)
    verdicts = store.read_jsonl(job.inputs["label"] / "verdicts.jsonl", Verdict)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        if verdict.p_a is not None and pair.a.source == pair.b.source and not _by_people(verdict):
            # Comparisons are not calibrated, so neither is this.
            yield (
                verdict.evidence.get("p_raw", verdict.p_a),
                relative(len(pair.a.text), len(pair.b.text)),
                pair.prompt.id,
            )


def _trust(results: Results, exam: ExamReport | None, people: AgreementReport | None) -> dict[str, Estimate]:
    """Judge -> mean probability that it gave to what people preferred."""
    found = dict(people.trust) if people else {}
    if exam is not None and exam.gold is not None and exam.gold.trust is not None:
        for judge in results.judges:
            if judge.fingerprint == exam.fingerprint:
                found.setdefault(judge.name, exam.gold.trust)
    return found


def _corrected(
    found: Comparison,
    rows: list[Match],
    pairs: Mapping[str, Pair],
    votes: Mapping[str, float],
    chosen: Set[str],
    trust: Mapping[str, Estimate],
    confidence: float,
) -> Corrected | None:
    apart = [row for row in rows if not row.same]  # the votes are a sample of these alone
    labels = {
        place: votes[row.pair] if pairs[row.pair].a.source == found.one else 1.0 - votes[row.pair]
        for place, row in enumerate(apart)
        if row.pair in votes
    }
    if labels:
        p, prompts = [row.p for row in apart], [row.prompt for row in apart]
        drawn = {place: label for place, label in labels.items() if apart[place].pair not in chosen}
        left_out = len(labels) - len(drawn)
        corrected = prediction_powered(
            found.judge, found.one, found.other, p, drawn, prompts, left_out=left_out, confidence=confidence
        )
        return _with_ties(corrected, 1 - len(apart) / len(rows))
    if found.judge in trust:
        return rogan_gladen(found.judge, found.one, found.other, found, trust[found.judge], confidence=confidence)
    return None


def _with_ties(found: Corrected, ties: float) -> Corrected:
    """The rate over all pairs from that over those whose texts differ, where the share `ties` has equal texts."""
    rates = {name: getattr(found, name) for name in ("win_rate", "low", "high")}
    over_all = {name: ties / 2 + (1 - ties) * rate for name, rate in rates.items() if rate is not None}
    return found.model_copy(update=over_all)
