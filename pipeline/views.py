"""What the losses see of the verdicts: chosen and rejected with a confidence, or good and bad. All pure functions.

A tie and an abstention decide nothing, so they give no preference; `count` says how many there were, and its numbers
add up. Which answer is chosen depends on the verdicts alone: never on the order of the pairs, never on a side.

What is left out: reading and writing files, and what a loss does with the confidence.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field

from pipeline.errors import DataError
from pipeline.records import ABSTENTIONS, Pair, Preference, Prompt, Record, Response, Thumb, Verdict, digest


class Counts(Record):
    """What became of the pairs. pairs = decided + ties + below_confidence + the sum of `abstained`."""

    pairs: int
    decided: int
    ties: int
    below_confidence: int
    """Decided, but with less confidence than was asked for."""
    abstained: dict[str, int] = Field(default_factory=dict)
    """How many for each reason that was given at least once."""

    def __add__(self, other: "Counts") -> "Counts":
        both = Counter(self.abstained) + Counter(other.abstained)
        return Counts(
            pairs=self.pairs + other.pairs,
            decided=self.decided + other.decided,
            ties=self.ties + other.ties,
            below_confidence=self.below_confidence + other.below_confidence,
            abstained={reason: both[reason] for reason in ABSTENTIONS if both[reason]},
        )


def decided(pairs: Sequence[Pair], verdicts: Sequence[Verdict], min_confidence: float = 0.5) -> list[Preference]:
    """The preference of each pair with a winner, in the order of the pairs.

    Args:
        pairs: each at most once.
        verdicts: one for each pair, in any order.
        min_confidence: pairs whose winner is less probable than this are left out.

    Raises:
        DataError: a pair without its verdict, or a pair or verdict that is there twice or belongs to nothing.
    """
    found = (_preference(pair, verdict) for pair, verdict in _matched(pairs, verdicts))
    return [preference for preference in found if preference and preference.confidence >= min_confidence]


def best_worst(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> list[tuple[Pair, Verdict]]:
    """For each prompt the pair of its best and its worst response, with that pair's own verdict.

    Best and worst are by Borda score: the mean, over a response's answered pairs, of the probability that it is the
    better one. Equal scores are ranked by a hash of the texts. A prompt gives nothing where the scores of best and
    worst are equal, where the two were never compared, or where their own verdict does not say the same: a chosen
    answer that nobody preferred to the rejected one is noise.

    Raises:
        DataError: as for `decided`.
    """
    by_prompt: dict[str, list[tuple[Pair, Verdict]]] = defaultdict(list)
    for pair, verdict in _matched(pairs, verdicts):
        by_prompt[pair.prompt.id].append((pair, verdict))
    found = (_best_worst_of(judged) for judged in by_prompt.values())
    return [extreme for extreme in found if extreme is not None]


def count(pairs: Sequence[Pair], verdicts: Sequence[Verdict], min_confidence: float = 0.5) -> Counts:
    """What `decided` does with the same arguments, in numbers.

    Raises:
        DataError: as for `decided`.
    """
    fates = Counter(_fate(verdict, min_confidence) for _, verdict in _matched(pairs, verdicts))
    return Counts(
        pairs=len(pairs),
        decided=fates["decided"],
        ties=fates["ties"],
        below_confidence=fates["below_confidence"],
        abstained={reason: fates[reason] for reason in ABSTENTIONS if fates[reason]},
    )


def confidence_histogram(verdicts: Iterable[Verdict]) -> list[int]:
    """How many decided verdicts there are in each of ten bins of equal width, from confidence 0.5 up to 1.

    A bin holds its lower edge and not its upper one; the last holds both.
    """
    found = [_confidence(verdict.p_a) for verdict in verdicts if verdict.p_a is not None and not verdict.is_tie]
    bins = Counter(min(9, int((confidence - 0.5) / 0.05 + 1e-9)) for confidence in found)
    return [bins[i] for i in range(10)]


def paired(preferences: Iterable[Preference]) -> list[dict[str, Any]]:
    """Rows for the losses that compare two answers (DPO): TRL's conversational preference format.

    Each row has `prompt`, `chosen` and `rejected` as lists of messages, `confidence`, and in `cut` the columns of
    token ids whose answer did not end by itself (see `algorithms.tokens`). Sorted by pair id.
    """
    return [
        {
            "prompt": _messages(preference.prompt),
            "chosen": _turn(preference.chosen),
            "rejected": _turn(preference.rejected),
            "confidence": preference.confidence,
            "cut": [
                f"{side}_ids"
                for side, response in (("chosen", preference.chosen), ("rejected", preference.rejected))
                if response.finished is False
            ],
        }
        for preference in _sorted(preferences)
    ]


def together(preferences: Iterable[Preference]) -> list[dict[str, Any]]:
    """Rows for a loss that sees all answers to a prompt at once (reward model), each answer only once.

    Each row has `prompt` as messages, `answers` (the texts) with `cut` (which of them did not end by itself), and
    `pairs`, the places of chosen and rejected among the answers, with the `confidence` of each. Sorted by pair id.
    """
    by_prompt: dict[str, list[Preference]] = defaultdict(list)
    for preference in _sorted(preferences):
        by_prompt[preference.prompt.id].append(preference)
    return [_together(judged) for judged in by_prompt.values()]


def unpaired(preferences: Iterable[Preference]) -> list[dict[str, Any]]:
    """Rows for the losses that see one answer at a time (KTO): TRL's conversational unpaired-preference format.

    Each preference gives two rows with `prompt`, `completion`, `label` and `cut` (as in `paired`): the chosen answer
    (True), then the rejected one (False). Sorted by pair id.
    """
    return [
        _single(preference.prompt, response, label)
        for preference in _sorted(preferences)
        for response, label in ((preference.chosen, True), (preference.rejected, False))
    ]


def single(thumbs: Iterable[Thumb]) -> list[dict[str, Any]]:
    """Rows as those of `unpaired`, one a thumb, however many people gave it. Sorted by prompt and answer."""
    return [
        _single(thumb.prompt, thumb.response, thumb.good)
        for thumb in sorted(thumbs, key=lambda thumb: (thumb.prompt.id, digest(thumb.response.key), thumb.good))
    ]


def _matched(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> list[tuple[Pair, Verdict]]:
    """Each pair with its verdict, by id: a list that lost a row must not shift every later verdict by one."""
    by_id = {verdict.pair_id: verdict for verdict in verdicts}
    ids = {pair.id for pair in pairs}
    if not len(by_id) == len(verdicts) == len(ids) == len(pairs) or ids != by_id.keys():
        raise DataError(
            f"verdicts: {len(pairs)} pairs ({len(ids)} different), {len(verdicts)} verdicts ({len(by_id)} different, "
            f"{len(ids & by_id.keys())} of them on these pairs); label exactly these pairs, each of them once"
        )
    return [(pair, by_id[pair.id]) for pair in pairs]


def _preference(pair: Pair, verdict: Verdict) -> Preference | None:
    if verdict.p_a is None or verdict.is_tie:
        return None
    a_wins = verdict.p_a > 0.5
    return Preference(
        pair_id=pair.id,
        prompt=pair.prompt,
        chosen=pair.a if a_wins else pair.b,
        rejected=pair.b if a_wins else pair.a,
        confidence=_confidence(verdict.p_a),
    )


def _confidence(p_a: float) -> float:
    # The float nearest to 1 - p for p just under 0.5 can be 0.5 itself, which no Preference may carry.
    return max(p_a, 1.0 - p_a, math.nextafter(0.5, 1.0))


def _fate(verdict: Verdict, min_confidence: float) -> str:
    if verdict.p_a is None:
        return str(verdict.abstained)
    if verdict.is_tie:
        return "ties"
    return "decided" if _confidence(verdict.p_a) >= min_confidence else "below_confidence"


def _best_worst_of(judged: Sequence[tuple[Pair, Verdict]]) -> tuple[Pair, Verdict] | None:
    """The extreme pair of one prompt's judged pairs, if there is one that its verdict confirms."""
    scores = _borda(judged)
    if not scores or max(scores.values()) == min(scores.values()):
        return None
    ranked = sorted(scores, key=lambda key: (scores[key], digest(key)))
    worst, best = ranked[0], ranked[-1]
    for pair, verdict in judged:
        preference = _preference(pair, verdict)
        if preference and (preference.chosen.key, preference.rejected.key) == (best, worst):
            return pair, verdict
    return None


def _borda(judged: Sequence[tuple[Pair, Verdict]]) -> dict[tuple[str, int, str], float]:
    """Each response's mean probability of being the better one, over the pairs that were answered."""
    better: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for pair, verdict in judged:
        if verdict.p_a is not None:
            better[pair.a.key].append(verdict.p_a)
            better[pair.b.key].append(1.0 - verdict.p_a)
    return {key: math.fsum(values) / len(values) for key, values in better.items()}


def _together(judged: Sequence[Preference]) -> dict[str, Any]:
    answers = {answer.key: answer for each in judged for answer in (each.chosen, each.rejected)}
    place = {key: number for number, key in enumerate(answers)}
    return {
        "prompt": _messages(judged[0].prompt),
        "answers": [answer.text for answer in answers.values()],
        "cut": [answer.finished is False for answer in answers.values()],
        "pairs": [[place[each.chosen.key], place[each.rejected.key]] for each in judged],
        "confidence": [each.confidence for each in judged],
    }


def _sorted(preferences: Iterable[Preference]) -> list[Preference]:
    return sorted(preferences, key=lambda preference: preference.pair_id)


def _single(prompt: Prompt, response: Response, good: bool) -> dict[str, Any]:
    return {
        "prompt": _messages(prompt),
        "completion": _turn(response),
        "label": good,
        "cut": ["completion_ids"] if response.finished is False else [],
    }


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [message.model_dump() for message in prompt.messages]


def _turn(response: Response) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": response.text}]
