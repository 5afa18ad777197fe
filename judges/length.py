"""Prefers the longer or the shorter response. The control every other judge is compared with:
a judge that agrees with this one is measuring length.
"""

from collections.abc import Sequence
from typing import Literal

from judges.base import JudgeConfig, Session
from pipeline.records import Pair, Prompt, Response, Verdict


class Config(JudgeConfig):
    name: Literal["length"] = "length"
    prefer: Literal["longer", "shorter"] = "longer"
    """Which of the two wins. Lengths are counted in characters; equal lengths are a tie."""

    def build(self, session: Session) -> "LengthJudge":
        return LengthJudge(self)


class LengthJudge:
    """Sure of itself by design (p is 0, 0.5 or 1): a control has no confidence to express."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        return [self._one(pair) for pair in pairs]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """See `judges.base.Scorer`: characters, counted as good or as bad."""
        sign = 1.0 if self.config.prefer == "longer" else -1.0
        return [sign * len(response.text) for response in responses]

    def _one(self, pair: Pair) -> Verdict:
        a, b = len(pair.a.text), len(pair.b.text)
        p_longer = 0.5 if a == b else float(a > b)
        return Verdict(
            pair_id=pair.id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=p_longer if self.config.prefer == "longer" else 1.0 - p_longer,
            evidence={"length_a": a, "length_b": b},
        )
