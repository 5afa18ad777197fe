"""Asks another judge twice, with the sides exchanged, and combines the answers in logit space.

Let z1 be the logit that the first-shown answer is better, once for (a, b) and once for (b, a). A judge that adds the
same amount to whatever is shown first has z_forward = s + bias and z_reverse = -s + bias, so

    s = (z_forward - z_reverse) / 2        bias = (z_forward + z_reverse) / 2

and the additive bias cancels exactly. Averaging probabilities or keeping only agreements would not do that. Orders
that disagree about the winner are no error: s says how much is left once the bias is gone, often close to a tie.
The bias (in nats, positive: favours the first) is kept with each verdict; its mean is the judge's position bias.

What is left out: a bias that depends on the texts, which no exchange of sides can remove.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from judges.base import AnyJudge, Cost, Judge, JudgeConfig, Session, ask, logit, sigmoid, unheard
from pipeline.records import ABSTENTIONS, Pair, Verdict


class Config(JudgeConfig):
    name: Literal["both_orders"] = "both_orders"
    of: AnyJudge
    """The judge that is asked. Each pair costs two of its answers."""

    @property
    def remote(self) -> bool:
        return self.of.remote

    @property
    def window(self) -> int:
        return self.of.window

    def cost(self, pairs: Sequence[Pair]) -> Cost:
        return Cost().plus(self.of.cost(pairs), times=2)

    def lacks(self) -> Iterable[str]:
        return self.of.lacks()

    def build(self, session: Session) -> "BothOrdersJudge":
        return BothOrdersJudge(self, self.of.build(session))

    def summary(self, verdicts: Iterable[Verdict]) -> dict[str, float]:
        """Mean position bias, and how often the winner changed with the order, of pairs that both orders answered."""
        answered, bias, flips = 0, 0.0, 0
        for evidence in (verdict.evidence for verdict in verdicts if "bias" in verdict.evidence):
            answered, bias = answered + 1, bias + evidence["bias"]
            # Both orders prefer what they were shown first, or both what they were shown second.
            flips += (evidence["forward"]["p_a"] - 0.5) * (evidence["reverse"]["p_a"] - 0.5) > 0
        return {"position_bias_nats": bias / answered, "flip_rate": flips / answered} if answered else {}


class BothOrdersJudge:
    def __init__(self, config: Config, of: Judge) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()
        self.of = of

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        # One call with both orders: a local model then sees the two sides of a pair in one batch.
        answers = ask(self.of, [*pairs, *(pair.swap() for pair in pairs)])
        forward, reverse = answers[: len(pairs)], answers[len(pairs) :]
        return [self._combine(*both) for both in zip(forward, reverse, strict=True)]

    def _combine(self, forward: Verdict, reverse: Verdict) -> Verdict:
        evidence: dict[str, Any] = {"forward": _kept(forward), "reverse": _kept(reverse), **unheard(forward, reverse)}
        p_a: float | None = None
        if forward.p_a is not None and reverse.p_a is not None:
            z_forward, z_reverse = logit(forward.p_a), logit(reverse.p_a)
            evidence["bias"] = (z_forward + z_reverse) / 2
            p_a = sigmoid((z_forward - z_reverse) / 2)
        return Verdict(
            pair_id=forward.pair_id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=p_a,
            abstained=_reason(forward, reverse),
            evidence=evidence,
            tokens_in=forward.tokens_in + reverse.tokens_in,
            tokens_out=forward.tokens_out + reverse.tokens_out,
            cost_usd=forward.cost_usd + reverse.cost_usd,
        )


def _reason(forward: Verdict, reverse: Verdict) -> str | None:
    """Why there is no answer, if either order gave none.

    Of two different reasons the one that comes first in ABSTENTIONS, so that it does not depend on the sides.
    """
    reasons = [verdict.abstained for verdict in (forward, reverse) if verdict.abstained is not None]
    return min(reasons, key=ABSTENTIONS.index, default=None)


def _kept(verdict: Verdict) -> dict[str, Any]:
    return {"p_a": verdict.p_a, "abstained": verdict.abstained, "evidence": verdict.evidence}
