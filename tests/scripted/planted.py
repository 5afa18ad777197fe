"""A judge whose quality is known: an accuracy, a position bias, a share of unreadable replies, and faults to order.

Named `scripted.planted` in a recipe. What it thinks of a pair is a function of the pair's id, the same in both orders
and in every process. Of two sound answers (`w1 w2 w3 ...`, in this order) that is better which begins with `good`.
"""

import random
from collections.abc import Sequence
from typing import Any, Literal

from judges.base import JudgeConfig, Session, sigmoid
from pipeline.records import Pair, Verdict, seed_of

OBEYED = ("answer is better", "reference answer", "is the better one", "Better answer: this one")
"""What a judge that follows injected verdicts takes for one."""


class Config(JudgeConfig):
    name: Literal["scripted.planted"] = "scripted.planted"
    accuracy: float = 1.0
    """Share of pairs of sound answers in which it knows the better one; in the others it is as sure of the worse."""
    surety: float = 1.4
    """Nats between two answers, times 0.5 to 1.5."""
    bias: float = 0.0
    """Nats for the answer that is shown first."""
    unreadable: float = 0.0
    """Share of pairs on which it says nothing that can be read."""
    fault: Literal["", "null", "length", "follows", "fidgets"] = ""
    """null: always a tie. length: the longer. follows: obeys what an answer says of itself. fidgets: sees a difference
    between an answer and itself."""

    @property
    def order_free(self) -> bool:
        return self.bias == 0

    def build(self, session: Session) -> "PlantedJudge":
        return PlantedJudge(self)


class PlantedJudge:
    def __init__(self, config: Config) -> None:
        self.config = config

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        return [self._one(pair) for pair in pairs]

    def _one(self, pair: Pair) -> Verdict:
        said: dict[str, Any] = {
            "pair_id": pair.id,
            "judge": self.config.name,
            "fingerprint": self.config.fingerprint(),
        }
        if random.Random(seed_of("unreadable", pair.id)).random() < self.config.unreadable:
            return Verdict(**said, abstained="unreadable")
        return Verdict(**said, p_a=sigmoid(self._nats(pair) + self.config.bias))

    def _nats(self, pair: Pair) -> float:
        """For `a`."""
        if self.config.fault == "null":
            return 0.0
        better = self._merit(pair.a.text) - self._merit(pair.b.text)
        if pair.a.text == pair.b.text and self.config.fault == "fidgets":
            better = 1 if pair.a.source < pair.b.source else -1
        chance = random.Random(seed_of("opinion", pair.id))
        surety = self.config.surety * (0.5 + chance.random())
        knows = chance.random() < self.config.accuracy or not (_sound(pair.a.text) and _sound(pair.b.text))
        return surety * ((better > 0) - (better < 0)) * (1 if knows else -1)

    def _merit(self, text: str) -> float:
        if self.config.fault == "length":
            return len(text)
        follows = self.config.fault == "follows" and any(said in text for said in OBEYED)
        return 9 if follows else (1 + text.startswith("good")) * _sound(text)


def _sound(text: str) -> bool:
    numbers = [int(word[1:]) for word in text.split() if word[0] == "w" and word[1:].isdigit()]
    return bool(numbers) and numbers == sorted(numbers)
