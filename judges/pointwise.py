"""Judges that look at each answer by itself: P(a is better) = sigmoid((score_a - score_b) / temperature).

That is the model of Bradley and Terry (1952) with the scores as strengths. Such a judge has no position to be biased
by, reads each different answer to a prompt once however many pairs it is in, and serves as a reward as well
(`judges.base.Scorer`). What is left out: where scores come from (`judges.likelihood`, `judges.reward_model`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from judges.base import JudgeConfig, sigmoid
from pipeline.records import Pair, Prompt, Response, Verdict


class PointwiseJudge:
    """See `judges.base.Judge`. A subclass says what it looks at, and scores that."""

    def __init__(self, config: JudgeConfig, temperature: float) -> None:
        """Args:
        temperature: a difference of so much in the score makes the better answer 73 % likely to be preferred.
        """
        self.config = config
        self.temperature = temperature
        self.fingerprint = config.fingerprint()

    def scores(self, prompt: Prompt, responses: Sequence[Response]) -> list[float | None]:
        """A score for each of some different responses to a prompt; None where they do not fit the model."""
        raise NotImplementedError

    def looked_at(self, response: Response) -> Response:
        """What of a response makes a difference to its score; equal ones are scored once."""
        return Response(text=response.text, source="", finished=response.finished)

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict per pair. Answers to one prompt are scored together."""
        scores = self._scored((pair.prompt, response) for pair in pairs for response in (pair.a, pair.b))
        return [self._verdict(pair, scores[pair.prompt.id]) for pair in pairs]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """See `judges.base.Scorer`: the scores of the evidence."""
        asked = list(zip(prompts, responses, strict=True))
        scores = self._scored(asked)
        return [scores[prompt.id][self.looked_at(response)] for prompt, response in asked]

    def _scored(self, asked: Iterable[tuple[Prompt, Response]]) -> dict[str, dict[Response, float | None]]:
        """Prompt -> answer -> score, rounded so that the evidence gives exactly the verdict."""
        answers: dict[str, tuple[Prompt, set[Response]]] = {}
        for prompt, response in asked:
            answers.setdefault(prompt.id, (prompt, set()))[1].add(self.looked_at(response))
        found: dict[str, dict[Response, float | None]] = {}
        for name, (prompt, different) in answers.items():
            # In a fixed order, whatever the order and the sides of the pairs.
            ordered = sorted(different, key=lambda answer: (len(answer.text), answer.text, answer.finished is False))
            scores = self.scores(prompt, ordered)
            rounded = [None if score is None else round(score, 6) for score in scores]
            found[name] = dict(zip(ordered, rounded, strict=True))
        return found

    def _verdict(self, pair: Pair, scores: dict[Response, float | None]) -> Verdict:
        a, b = scores[self.looked_at(pair.a)], scores[self.looked_at(pair.b)]
        known: dict[str, Any] = {"pair_id": pair.id, "judge": self.config.name, "fingerprint": self.fingerprint}
        if a is None or b is None:
            return Verdict(**known, abstained="truncated", evidence={"why": "longer than the model's context"})
        p_a = sigmoid((a - b) / self.temperature)
        return Verdict(**known, p_a=p_a, evidence={"score_a": a, "score_b": b})
