"""What a judge is. The contract, tested over the whole folder by `tests/judges/test_contract.py`.

1. `judge(pairs)` returns one Verdict per pair, in the same order.
2. Exchanging the sides of a pair exchanges the verdict; a judge that cannot promise this says
   `order_free = False` and is wrapped in `both_orders` before it may label.
3. "I could not tell" is an answer: a failure, a refusal or an unreadable reply is an abstention with a reason,
   never a tie, a zero or a side.
4. A verdict is a function of the judge's configuration and of the pairs of its prompt that it is asked about
   together; never of the clock, of the process or of what was asked before.

Judges import torch nowhere at module level, so that reading a recipe and labelling through an API stay light.
What is left out: which pairs are asked, in what order, and where verdicts are kept (`pipeline.label`, `judges.cached`).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, get_type_hints

from pipeline.errors import JudgeError
from pipeline.plugins import Config, Plugin
from pipeline.records import Pair, Prompt, Response, Verdict, digest

MAX_LOGIT = 8.0
"""Logits are clipped here before they are combined: sigmoid(8) = 0.99966, and no single call can say more."""


class Judge(Protocol):
    """Anything that can say which of two answers is better."""

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict per pair, in order."""
        ...


class Scorer(Protocol):
    """A judge that can also say how good one answer is by itself: the reward of d-RLAIF (Lee et al. 2023).

    A judge whose `p_a` is sigmoid((score_a - score_b) / temperature) has such a score for nothing. Scores of one
    judge are comparable within a prompt; their zero and their unit mean nothing.
    """

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float | None]:
        """One finite score for each response to the prompt beside it, higher is better; None: it could not tell."""
        ...


@dataclass(frozen=True)
class Session:
    """For whom a judge works: where paid replies are kept, and on whose account. Local judges need nothing of it."""

    journal: Path | None = None
    """The SQLite file of replies and of the ledger, shared by runs. None: in memory, forgotten at the end."""
    run: str = ""
    """The account that calls are charged to: the run's (`pipeline.account`)."""
    step: str = ""
    """The step that asks, for the ledger."""
    making: str = ""
    """Which of the times that the step is made: its name and its fingerprint. Another judge makes it another time."""
    budget_usd: float | None = None
    """What the account may ever be charged. None: no limit."""
    processes: int = 1
    """So many processes work for this step at once and share the endpoint's limits."""


class Cost(NamedTuple):
    """What asking would take, before anybody was asked."""

    calls: int = 0
    tokens_in: int = 0
    """About, at four characters a token."""
    tokens_out: int = 0
    """About, for replies as long as they usually are."""
    usd: float = 0.0
    """About, for these tokens."""
    most_usd: float = 0.0
    """What is reserved for these calls: no reply can cost more. Attempts that fail and cost come on top."""

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """Both together, the other one so many times."""
        return Cost(
            self.calls + times * other.calls,
            self.tokens_in + times * other.tokens_in,
            self.tokens_out + times * other.tokens_out,
            self.usd + times * other.usd,
            self.most_usd + times * other.most_usd,
        )


class JudgeConfig(Config):
    """Base of every judge's Config. The subclass adds `name: Literal["its file"]` and its options."""

    VERSION: ClassVar[int] = 1
    """Raised by hand when a change of the judge's code changes its answers, so that old labels are not reused."""

    name: str
    """The judge: a file of `judges/`, or the dotted name of any module that defines such a Config."""

    @property
    def order_free(self) -> bool:
        """True if exchanging the sides provably exchanges the verdict (each answer is scored alone)."""
        return True

    @property
    def remote(self) -> bool:
        """True if asking it uses no model in this process: one process then asks it, about many pairs at once."""
        return False

    @property
    def scores_alone(self) -> bool:
        """False if what `build` says that it gives compares answers, and cannot score one by itself (`Scorer`)."""
        try:
            made = get_type_hints(type(self).build).get("return")
        except NameError:  # a class that is imported for type checkers alone
            return True
        # One that says no more than Judge is found out when it is built.
        return made is Judge or not isinstance(made, type) or hasattr(made, "score")

    @property
    def window(self) -> int:
        """Pairs that it is best asked about at once. One or fewer: those of one prompt."""
        return 8192 if self.remote else 1  # so many that waiting for the slowest of them costs little

    def cost(self, pairs: Sequence[Pair]) -> Cost:
        """What it would cost to ask about these pairs; nothing for a judge in this process."""
        return Cost()

    def lacks(self) -> Iterable[str]:
        """What has to be mended before it can be built, such as a key that is not set: told before anything runs."""
        return ()

    def build(self, session: Session) -> Judge:
        """The judge itself. Models load here, not before.

        Raises:
            JudgeError: the judge cannot answer at all.
        """
        raise NotImplementedError

    def summary(self, verdicts: Iterable[Verdict]) -> dict[str, float]:
        """What its verdicts together tell of this judge, by name: `..._rate` is a share, `..._nats` a log-odds,
        `..._points` a score.

        It is in label/summary.json and in the report. Verdicts pass by once; nothing to tell is an empty dict.
        """
        return {}

    def identity(self) -> dict[str, Any]:
        """Everything that can change an answer: the options here; a subclass adds prompt texts and `VERSION`."""
        # In capitals, which no option is: a plugin may have one that is called `version`.
        return {**super().identity(), "VERSION": self.VERSION}

    def fingerprint(self) -> str:
        """Hash of `identity()`; verdicts and the cache are keyed by it."""
        return digest(self.identity())


AnyJudge = Annotated[JudgeConfig, Plugin("judge")]
"""The type of a field that holds a judge: by its name alone, or a block with `name`."""


def ask(judge: Judge, pairs: Sequence[Pair]) -> list[Verdict]:
    """`judge.judge(pairs)`, with the first promise of the contract checked.

    Judges made of judges, and whoever labels, ask through this: a judge from outside that drops or reorders pairs
    would otherwise give every later pair a neighbour's verdict without any error.

    Raises:
        JudgeError: not exactly one verdict per pair, in the order of the pairs.
    """
    verdicts = judge.judge(pairs)
    if [verdict.pair_id for verdict in verdicts] != [pair.id for pair in pairs]:
        raise JudgeError(
            f"{type(judge).__module__}: asked about {len(pairs)} pairs, answered {len(verdicts)} verdicts that are not "
            "one per pair in the same order; return a verdict for every pair, an abstention where there is no answer"
        )
    return verdicts


def unheard(*verdicts: Verdict) -> dict[str, list[str]]:
    """What the evidence of a verdict made of others says of those that said nothing: why, theirs included.

    Such a verdict stands on fewer than it was meant to; where the reason may pass, it is not kept (`judges.cached`).
    """
    reasons: list[str] = []
    for verdict in verdicts:
        reasons += [verdict.abstained] if verdict.abstained is not None else []
        reasons += verdict.evidence.get("unheard", ())
    return {"unheard": reasons} if reasons else {}


def logit(p: float) -> float:
    """log(p / (1 - p)), clipped to +-MAX_LOGIT so that 0 and 1 stay finite."""
    if p <= 0.0:
        return -MAX_LOGIT
    if p >= 1.0:
        return MAX_LOGIT
    return max(-MAX_LOGIT, min(MAX_LOGIT, math.log(p / (1.0 - p))))


def sigmoid(z: float) -> float:
    """1 / (1 + exp(-z)), without overflow. sigmoid(z) + sigmoid(-z) == 1 to rounding; sigmoid(0) == 0.5 exactly."""
    if z >= 0:
        return 1.0 / (1.0 + math.exp(-z))
    return math.exp(z) / (1.0 + math.exp(z))


def judges_in(block: Config) -> Iterator[JudgeConfig]:
    """The judge that this block is, if it is one, and every judge that stands in it, however deep."""
    if isinstance(block, JudgeConfig):
        yield block
    for name in type(block).model_fields:
        value = getattr(block, name)
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, Config):
                yield from judges_in(each)


def judge_names(judges: Sequence[JudgeConfig]) -> list[str]:
    """A name for each judge; two with one name are numbered."""
    names = [judge.name for judge in judges]
    return [
        name if names.count(name) == 1 else f"{name} {names[: number + 1].count(name)}"
        for number, name in enumerate(names)
    ]
