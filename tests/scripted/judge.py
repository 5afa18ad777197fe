"""A judge that reads its verdict in the answers, named `scripted.judge` in a recipe.

`score=0.9 ...` gives an answer its strength; p_a is that of a over the sum of both. `open=refused ...` in either is an
abstention for that reason.
"""

import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from judges.base import JudgeConfig, Session
from pipeline.records import Pair, Response, Verdict


class Config(JudgeConfig):
    BUILT: ClassVar[list[str]] = []
    """Variants of the judges that were built in this process."""
    ASKED: ClassVar[list[list[str]]] = []
    """Ids of the pairs of each call."""

    name: Literal["scripted.judge"] = "scripted.judge"
    variant: str = "1"

    def build(self, session: Session) -> "ScriptedJudge":
        self.BUILT.append(self.variant)
        return ScriptedJudge(self)


class ScriptedJudge:
    def __init__(self, config: Config) -> None:
        self.config = config

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.config.ASKED.append([pair.id for pair in pairs])
        return [self._one(pair) for pair in pairs]

    def _one(self, pair: Pair) -> Verdict:
        left_open = re.search(r"open=(\w+)", pair.a.text + " " + pair.b.text)
        a, b = _score(pair.a), _score(pair.b)
        return Verdict(
            pair_id=pair.id,
            judge=self.config.name,
            fingerprint=self.config.fingerprint(),
            p_a=None if left_open else a / (a + b),
            abstained=left_open[1] if left_open else None,
            tokens_in=10,
            tokens_out=1,
            cost_usd=0.25,
        )


def _score(response: Response) -> float:
    found = re.search(r"score=([\d.]+)", response.text)
    return float(found[1]) if found else 1.0
