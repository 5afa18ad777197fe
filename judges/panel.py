"""Several judges together: the mean of their logits, weighted by how often each is right.

    z = sum w_i z_i / T_i / sum w_i        w_i = log(accuracy_i / (1 - accuracy_i))

Log-odds are the weights of the best vote of independent judges (Nitzan and Paroush 1982). Judges err together, so this
is a mean and no sum: a panel is no surer than its members are. Equal weights are no default, for three weak judges that
share a fault outvote one good judge (on LLMBar-Adversarial a majority of three fell from 66.0 to 36.1 % right).

Members are reached through the journal: who was asked by another recipe is not asked again. What is left out: measuring
accuracy (`judges.exam`) and how the members' errors go together (`pipeline.agreement`).
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import chain
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from judges import cached
from judges.base import AnyJudge, Cost, Judge, JudgeConfig, Session, ask, logit, sigmoid, unheard
from pipeline.plugins import Config as Block
from pipeline.records import ABSTENTIONS, Pair, Verdict


class Member(Block):
    """One judge of a panel and how much it counts."""

    judge: AnyJudge
    """Who is asked."""
    accuracy: float | None = Field(default=None, gt=0.5, lt=1)
    """Share of held-out gold pairs on which it was right, as `prefloop judge exam` measures it. Its weight is the
    log-odds of that. A judge at 0.5 or below knows nothing: leave it out."""
    weight: float | None = Field(default=None, gt=0)
    """The weight itself, in place of an accuracy."""
    temperature: float = Field(default=1.0, gt=0)
    """Its logits are divided by this: the temperature that the exam fitted, so that a boastful judge counts no more
    than a modest one."""

    @model_validator(mode="after")
    def _has_one_weight(self) -> Self:
        if (self.accuracy is None) == (self.weight is None):
            raise ValueError(
                f"{self.judge.name} needs `accuracy`, measured on gold by `prefloop judge exam`, or else a `weight`; "
                "there is no equal share by default, because weak judges that err together outvote a good one"
            )
        return self

    @property
    def share(self) -> float:
        """How much it counts: its weight, or the log-odds of its accuracy."""
        return logit(self.accuracy) if self.accuracy is not None else float(self.weight or 0)


class Config(JudgeConfig):
    name: Literal["panel"] = "panel"
    of: tuple[Member, ...] = Field(min_length=2)
    """The members."""
    quorum: int | None = Field(default=None, ge=1)
    """Members that must answer; the answers of fewer are an abstention. None: more than half."""

    @model_validator(mode="after")
    def _can_meet(self) -> Self:
        if self.quorum is not None and self.quorum > len(self.of):
            raise ValueError(f"quorum is {self.quorum} and there are {len(self.of)} members")
        fingerprints = [member.judge.fingerprint() for member in self.of]
        for index, member in enumerate(self.of):
            if fingerprints[index] in fingerprints[:index]:
                raise ValueError(f"{member.judge.name} is a member twice; give it one entry with a larger weight")
        return self

    @property
    def order_free(self) -> bool:
        return all(member.judge.order_free for member in self.of)

    @property
    def remote(self) -> bool:
        return all(member.judge.remote for member in self.of)

    @property
    def window(self) -> int:
        return max(member.judge.window for member in self.of)

    def cost(self, pairs: Sequence[Pair]) -> Cost:
        return reduce(Cost.plus, (member.judge.cost(pairs) for member in self.of))

    def lacks(self) -> Iterable[str]:
        return chain.from_iterable(member.judge.lacks() for member in self.of)

    @property
    def needed(self) -> int:
        """Members that must answer."""
        return self.quorum if self.quorum is not None else len(self.of) // 2 + 1

    def build(self, session: Session) -> "PanelJudge":
        return PanelJudge(self, [cached.member(member.judge, session) for member in self.of])

    def summary(self, verdicts: Iterable[Verdict]) -> dict[str, float]:
        """How often members that answered disagree about the winner, and how often one did not answer."""
        seen, split, silent = 0, 0, 0
        for verdict in verdicts:
            answers = [member["p_a"] for member in verdict.evidence["members"]]
            sides = {p > 0.5 for p in answers if p is not None and p != 0.5}
            seen, split, silent = seen + 1, split + (len(sides) > 1), silent + (None in answers)
        return {"split_rate": split / seen, "member_silent_rate": silent / seen} if seen else {}


class PanelJudge:
    """See `judges.base.Judge`."""

    def __init__(self, config: Config, members: Sequence[Judge]) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()
        self.members = members

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        answers = [ask(member, pairs) for member in self.members]
        return [self._combine(pair, votes) for pair, votes in zip(pairs, zip(*answers, strict=True), strict=True)]

    def _combine(self, pair: Pair, votes: Sequence[Verdict]) -> Verdict:
        answered = [
            (member.share, logit(vote.p_a) / member.temperature)
            for member, vote in zip(self.config.of, votes, strict=True)
            if vote.p_a is not None
        ]
        enough = len(answered) >= self.config.needed
        z = sum(weight * z for weight, z in answered) / sum(weight for weight, _ in answered) if enough else 0.0
        reasons = [vote.abstained for vote in votes if vote.abstained is not None]
        return Verdict(
            pair_id=pair.id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=sigmoid(z) if enough else None,
            abstained=None if enough else min(reasons, key=ABSTENTIONS.index),
            evidence={"members": [_kept(*each) for each in zip(self.config.of, votes, strict=True)], **unheard(*votes)},
            tokens_in=sum(vote.tokens_in for vote in votes),
            tokens_out=sum(vote.tokens_out for vote in votes),
            cost_usd=sum(vote.cost_usd for vote in votes),
        )


def members_of(verdict: Verdict) -> list[Verdict]:
    """What each member said, from the evidence of a panel's verdict; nothing from another judge's.

    Agreement is told of them as of any judges, with how their errors go together where people's answers are known.
    """
    said = ("judge", "fingerprint", "p_a", "abstained")
    return [
        Verdict(pair_id=verdict.pair_id, **{name: member[name] for name in said})
        for member in verdict.evidence.get("members", ())
    ]


def _kept(member: Member, vote: Verdict) -> dict[str, Any]:
    return {
        "judge": vote.judge,
        "fingerprint": vote.fingerprint,
        "weight": member.share,
        "p_a": vote.p_a,
        "abstained": vote.abstained,
    }
