"""A language model behind an API, asked which of two answers is better.

How its verdict is read, `mode`, first what is best: `label`, the probabilities of the two labels as the first token of
the reply; `json`, an object with a reason and a verdict; `reason`, some sentences and then a verdict, whose
probabilities are read where the endpoint tells them. Where the endpoint cannot do what a mode needs, the modes of
`fallback` are tried in their order; which one it was is in the evidence of every verdict.

A reply that cannot be read is answered with one question for the verdict alone, and then it is an abstention. The
model prefers a place and a label whatever stands there (`order_free` is False); `both_orders` removes that.

What is left out: how a comparison is written (`judges.pairwise`, `judges.rendering`), what a reply says
(`judges.verdicts`), attempts, money and speed (`judges.client`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from judges.api import ApiConfig, Call, Endpoint, Features
from judges.base import Cost, Session
from judges.ledger import NANO
from judges.pairwise import PairwiseConfig, PairwiseJudge, Question, Reading
from judges.replies import Outcome, Reply
from judges.verdicts import json_field, label_logprobs, label_of, last_line
from pipeline.errors import JudgeError
from pipeline.records import Pair

Mode = Literal["label", "json", "reason"]

ABSTAINED = {
    Outcome.REFUSED: "refused",
    Outcome.FILTERED: "filtered",
    Outcome.TOO_LONG: "truncated",
}
"""Outcomes that are abstentions; every other one without an answer is `failed`."""

THOUGHT_ONLY = (
    "a reply ended at its limit of tokens before it said anything, as of a model that reasons first; ask it with the "
    "judge llm and mode: json or reason, and raise max_tokens"
)


class Config(PairwiseConfig, ApiConfig):
    """Which model is asked, and how."""

    RUNTIME: ClassVar[frozenset[str]] = ApiConfig.RUNTIME
    VERSION: ClassVar[int] = PairwiseConfig.VERSION + 2

    name: Literal["llm"] = "llm"
    mode: Mode = "label"
    """label: one token, with log-probabilities. json: reason and verdict in a schema. reason: sentences and a verdict.
    Asking for reasons first helps with mathematics and code, and blurs the confidence elsewhere."""
    fallback: tuple[Mode, ...] = ("json", "reason")
    """What is tried, in this order, where the endpoint cannot do what the mode needs. []: that is an error."""
    samples: int = Field(default=1, ge=1)
    """Replies to each question, in the modes without log-probabilities; p is the share of their votes, drawn towards
    1/2 by one vote. More than 1 needs a temperature above 0."""
    max_tokens: int = Field(default=400, ge=8)
    """Most tokens of a reply with reasons."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples: {self.samples} replies at temperature 0 are one reply; set a temperature")
        return self

    def cost(self, pairs: Sequence[Pair]) -> Cost:
        """What its mode would cost, if the endpoint can do it and every reply can be read."""
        judge = PairwiseJudge(self, Unasked(self.labels[0], self.mode))
        asked = (question.system + question.user for question in map(judge.question, pairs))
        return self.cost_of(call for text in asked for call in self._calls(text))

    def _calls(self, text: str) -> Iterator[tuple[str, int, int]]:
        """(text, tokens of the usual reply, most tokens of it) of each call for one question."""
        if self.mode == "label":
            yield text, 1, 1
            return
        usual = min({"json": 60, "reason": 150}[self.mode], self.max_tokens)
        for _ in range(self.samples):
            yield text, usual, self.max_tokens
        if self.mode == "reason":
            yield text + "." * 4 * usual, 1, 1  # the reply is part of the question for its verdict

    def build(self, session: Session) -> PairwiseJudge:
        return PairwiseJudge(self, ApiModel(self, Endpoint(self, session)))


class Unasked:
    """A backend that only has questions written for it."""

    special_tokens: tuple[str, ...] = ()

    def __init__(self, labels: tuple[str, str], contract: str) -> None:
        self.labels = labels
        self.contract = contract

    def read(self, questions: Sequence[Question]) -> list[Reading]:
        """Nobody is asked."""
        raise NotImplementedError


class Said(NamedTuple):
    """The readable part of one reply, or why there is none."""

    logprobs: tuple[float, float] | None = None
    label: str | None = None
    abstained: str | None = None


class ApiModel:
    """See `judges.pairwise.Backend`."""

    special_tokens: tuple[
        str, ...
    ] = ()  # a tokenizer is not at hand; those of the common families are broken up anyway

    def __init__(self, config: Config, endpoint: Endpoint) -> None:
        """Raises:
        JudgeError: the endpoint can do none of the modes.
        """
        self.config = config
        self.endpoint = endpoint
        self.labels = config.labels[0]
        self.mode, self.features = choose_mode(config, endpoint)
        self.contract: str = self.mode

    def read(self, questions: Sequence[Question]) -> list[Reading]:
        """One reading per question, as many at once as the endpoint takes."""
        return self.endpoint.client.run([partial(self._reading, questions, number) for number in range(len(questions))])

    async def _reading(self, questions: Sequence[Question], number: int) -> Reading:
        question = questions[number]
        asked = Asked(self, question)
        if self.mode == "label":
            said = await asked.for_label(())
            if self._unreadable(said):
                said = await asked.for_label(asked.again(question.contracts["label"]))
            return asked.reading(said)
        heard: list[Said] = []
        for sample in range(self.config.samples):
            heard.append(await self._vote(asked, sample))
            if heard[-1].logprobs is not None:
                break
        return asked.reading(*heard)

    async def _vote(self, asked: "Asked", sample: int) -> Said:
        said = await asked.for_words(sample)
        label = asked.question.contracts["label"]
        if said.abstained not in (None, "unreadable"):
            return said
        if self.mode == "reason" and self.features.logprobs:
            return await asked.for_label(asked.again(label))
        return said if said.label else await asked.for_verdict_alone(asked.again(label), sample)

    def _unreadable(self, said: Said) -> bool:
        if said.logprobs is None:
            return said.abstained == "unreadable"
        return math.exp(said.logprobs[0]) + math.exp(said.logprobs[1]) < self.config.min_label_mass


class Asked:
    """One question and all the calls that it took."""

    def __init__(self, model: ApiModel, question: Question) -> None:
        self.model = model
        self.question = question
        self.turns: tuple[Mapping[str, str], ...] = (
            {"role": "system", "content": question.system},
            {"role": "user", "content": question.user},
        )
        self.replies: list[Reply] = []
        self.cut = ""
        """What to do about a reply that ended at its limit of tokens, before its verdict; nothing if none did."""

    def again(self, contract: str) -> tuple[Mapping[str, str], ...]:
        """The turns that ask for the verdict alone, after the last reply."""
        said = self.replies[-1].text or ""
        return ({"role": "assistant", "content": said}, {"role": "user", "content": contract})

    async def for_label(self, more: Sequence[Mapping[str, str]]) -> Said:
        """The labels' probabilities as the first token of a reply."""
        reply = await self._ask(more, max_out=1, logprobs=True)
        if reply.outcome != Outcome.OK:
            return Said(abstained=ABSTAINED.get(reply.outcome, "failed"))
        found = label_logprobs(reply.logprobs or (), self.model.labels)
        if not found and thought_only(reply):
            self.cut = THOUGHT_ONLY
        return Said(found, abstained=None if found else "unreadable")

    async def for_words(self, sample: int) -> Said:
        """The verdict of a reply in words, in the way of the mode."""
        schema = self.model.mode == "json" and self.model.features.json_schema
        reply = await self._ask((), max_out=self.model.config.max_tokens, json_schema=schema, sample=sample)
        if reply.outcome != Outcome.OK:
            return Said(abstained=ABSTAINED.get(reply.outcome, "failed"))
        text, labels = reply.text or "", self.model.labels
        if self.model.mode == "json":
            verdict = json_field(text, "verdict")
            label = label_of(verdict, labels) if isinstance(verdict, str) else None
        else:
            label = last_line(text, "verdict", labels)
        if label is None and reply.finish == "length":
            most = self.model.config.max_tokens
            self.cut = f"a reply was cut at {most} tokens, before its verdict; raise max_tokens"
        return Said(label=label, abstained=None if label else "unreadable")

    async def for_verdict_alone(self, more: Sequence[Mapping[str, str]], sample: int) -> Said:
        """The one question that follows a reply nobody can read."""
        reply = await self._ask(more, max_out=16, sample=sample)
        if reply.outcome != Outcome.OK:
            return Said(abstained=ABSTAINED.get(reply.outcome, "failed"))
        label = label_of(reply.text or "", self.model.labels)
        return Said(label=label, abstained=None if label else "unreadable")

    async def _ask(self, more: Sequence[Mapping[str, str]], *, max_out: int, **options: Any) -> Reply:
        turns = [*self.turns, *more]
        call = Call(turns, max_out, labels=self.model.labels, **options)
        self.replies.append(await self.model.endpoint.complete(call))
        return self.replies[-1]

    def reading(self, *heard: Said) -> Reading:
        """What the judge makes its verdict of: the last one's probabilities, or the votes of all."""
        last, votes = heard[-1], [said.label for said in heard if said.label]
        counts = tuple(votes.count(label) for label in self.model.labels)
        evidence: dict[str, Any] = {"mode": self.model.mode, "said": [reply.text for reply in self.replies]}
        silent = [said.abstained for said in heard if said.abstained]
        if silent and votes:
            evidence["unheard"] = silent  # see `judges.base.unheard`
        abstained = None if last.logprobs or votes else last.abstained
        details = [reply.detail for reply in self.replies if reply.detail]
        if abstained == "unreadable" and self.cut:
            abstained = "truncated"
            details.append(self.cut)
        if details:
            evidence["trouble"] = details
        return Reading(
            logprobs=last.logprobs,
            votes=(counts[0], counts[1]) if votes else None,
            abstained=abstained,
            evidence=evidence,
            tokens_in=sum(reply.tokens_in for reply in self.replies),
            tokens_out=sum(reply.tokens_out for reply in self.replies),
            cost_usd=sum(reply.cost for reply in self.replies) / NANO,
        )


def thought_only(reply: Reply) -> bool:
    """True if all tokens that it was allowed went by before the reply said anything."""
    return reply.finish == "length" and not (reply.text or "").strip()


def choose_mode(config: Config, endpoint: Endpoint) -> tuple[Mode, Features]:
    """The first of mode and fallbacks that the endpoint can do, and what it takes.

    Raises:
        JudgeError: it can do none.
    """
    modes: tuple[Mode, ...] = (config.mode, *config.fallback)
    # Before it is said that it can do none, the endpoint itself is asked and not the journal.
    for afresh, mode in product((False, True), modes):
        max_out = 1 if mode == "label" else config.max_tokens
        wanted = {"logprobs": mode in ("label", "reason"), "json_schema": mode == "json"}
        features = endpoint.find_out(max_out, **wanted, afresh=afresh)
        if mode == "reason" or (features.logprobs if mode == "label" else features.json_schema):
            return mode, features
    raise JudgeError(
        f"judge.mode: {config.base_url} gives no log-probabilities for {config.model} or keeps to no schema, which "
        f"{' and '.join(modes)} need; add reason to judge.fallback, which needs neither"
    )
