"""Asks a cheap judge first, and a dear one only where the cheap one is unsure.

A verdict says who decided it; the summary says how often the dear judge was asked and what was saved. Where the cheap
judge is unsure and the dear one cannot tell, the pair stays open: a guess that was not good enough before is no better
after a failure.

Both are reached through the journal: who was asked by another recipe is not asked again. What is left out: choosing the
threshold. Take it from the exam: the confidence from which the cheap judge is right as often as you need.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from judges import cached
from judges.base import AnyJudge, Cost, Judge, JudgeConfig, Session, ask, logit, sigmoid, unheard
from pipeline.records import Pair, Verdict


class Config(JudgeConfig):
    name: Literal["cascade"] = "cascade"
    cheap: AnyJudge
    """Who is asked about every pair."""
    dear: AnyJudge
    """Who is asked where `cheap` is unsure or abstains."""
    threshold: float = Field(default=0.8, gt=0.5, lt=1)
    """Confidence in its winner from which the cheap judge's verdict stands."""
    temperature: float = Field(default=1.0, gt=0)
    """The cheap judge's logits are divided by this before they are compared with the threshold: the temperature that
    the exam fitted, without which a boastful judge decides everything."""

    @property
    def order_free(self) -> bool:
        return self.cheap.order_free and self.dear.order_free

    @property
    def remote(self) -> bool:
        return self.cheap.remote and self.dear.remote

    @property
    def window(self) -> int:
        return max(self.cheap.window, self.dear.window)

    def cost(self, pairs: Sequence[Pair]) -> Cost:
        """That of both judges for every pair: how often the dear one is asked is known only afterwards."""
        return self.cheap.cost(pairs).plus(self.dear.cost(pairs))

    def lacks(self) -> Iterable[str]:
        return (*self.cheap.lacks(), *self.dear.lacks())

    def build(self, session: Session) -> "CascadeJudge":
        return CascadeJudge(self, cached.member(self.cheap, session), cached.member(self.dear, session))

    def summary(self, verdicts: Iterable[Verdict]) -> dict[str, float]:
        """How often the dear judge was asked, and the share of its bill for all pairs that was saved, if it has one."""
        seen, escalated, spent, dear = 0, 0, 0.0, 0.0
        for verdict in verdicts:
            seen, spent = seen + 1, spent + verdict.cost_usd
            if "dear" in verdict.evidence:
                escalated, dear = escalated + 1, dear + verdict.evidence["dear"]["cost_usd"]
        if not seen:
            return {}
        found = {"escalation_rate": escalated / seen}
        if dear:
            found["saving_rate"] = 1 - spent / (seen * dear / escalated)
        return found


class CascadeJudge:
    """See `judges.base.Judge`."""

    def __init__(self, config: Config, cheap: Judge, dear: Judge) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()
        self.cheap = cheap
        self.dear = dear

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        first = ask(self.cheap, pairs)
        unsure = [index for index, verdict in enumerate(first) if not self._sure(verdict)]
        # All at once, so that a judge behind an API can answer them side by side.
        second = dict(zip(unsure, ask(self.dear, [pairs[index] for index in unsure]), strict=True)) if unsure else {}
        return [self._verdict(cheap, second.get(index)) for index, cheap in enumerate(first)]

    def _sure(self, verdict: Verdict) -> bool:
        # The rounding of one side against the other must not decide who is asked.
        return verdict.p_a is not None and abs(self._logit(verdict.p_a)) + 1e-9 >= logit(self.config.threshold)

    def _logit(self, p: float) -> float:
        return logit(p) / self.config.temperature

    def _verdict(self, cheap: Verdict, dear: Verdict | None) -> Verdict:
        asked = {"cheap": cheap} if dear is None else {"cheap": cheap, "dear": dear}
        if dear is None:
            assert cheap.p_a is not None
            p_a: float | None = sigmoid(self._logit(cheap.p_a))
        else:
            p_a = dear.p_a
        return Verdict(
            pair_id=cheap.pair_id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=p_a,
            abstained=None if dear is None else dear.abstained,
            evidence={"decided_by": None if p_a is None else list(asked)[-1]}
            | {name: _kept(verdict) for name, verdict in asked.items()}
            | unheard(dear or cheap),
            tokens_in=sum(verdict.tokens_in for verdict in asked.values()),
            tokens_out=sum(verdict.tokens_out for verdict in asked.values()),
            cost_usd=sum(verdict.cost_usd for verdict in asked.values()),
        )


def _kept(verdict: Verdict) -> dict[str, Any]:
    return {"p_a": verdict.p_a, "abstained": verdict.abstained, "cost_usd": verdict.cost_usd}
