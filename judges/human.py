"""People, by the votes that they cast: a verdict on every pair that somebody voted on, and none on the others.

With `otherwise`, another judge answers where nobody voted: people label some of the pairs (those that the judge is
least sure of, if they voted on `prefloop annotate`), the judge the rest. It is asked about every pair all the same,
because how far it agrees with people is what its other labels are worth; the summary says so.

A vote is found by the texts of the prompt and of the two answers, so it counts whichever run the pair came from. The
evidence says, where it is known, whether the pair was drawn at random (`sample`): what people say of the pairs that a
judge was least sure of says little about the others. Two answers of the same text are put to nobody, so that on these
there is no verdict either: a tie that nobody said would outweigh, where people voted on few pairs, what they did say.

What is left out: formats (`pipeline.importers`), and what several votes amount to (`pipeline.crowd`).
"""

import functools
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from judges import cached
from judges.base import AnyJudge, Cost, Judge, JudgeConfig, Session, ask, unheard
from pipeline.importers.base import NOBODY, Source
from pipeline.importers.times import earlier
from pipeline.records import Message, Pair, Sample, Verdict, Vote, digest
from pipeline.store import sha256_file

NAME = "people"
"""Who decided, where they did."""


class Config(JudgeConfig):
    name: Literal["human"] = "human"
    votes: Source
    """Where the votes are."""
    otherwise: AnyJudge | None = None
    """Who answers where nobody voted. None: those pairs stay open."""

    @property
    def order_free(self) -> bool:
        return self.otherwise is None or self.otherwise.order_free

    @property
    def remote(self) -> bool:
        return self.otherwise is None or self.otherwise.remote

    @property
    def window(self) -> int:
        return super().window if self.otherwise is None else self.otherwise.window

    def cost(self, pairs: Sequence[Pair]) -> Cost:
        return Cost() if self.otherwise is None else self.otherwise.cost(pairs)

    def lacks(self) -> Iterable[str]:
        missing = [
            f"votes.files: there is no file {file.absolute()}" for file in self.votes.files if not file.is_file()
        ]
        return (*missing, *(self.otherwise.lacks() if self.otherwise else ()))

    def identity(self) -> dict[str, Any]:
        """The votes themselves, and not where they are."""
        from pipeline import crowd, votes  # NumPy: not where a recipe is read

        found = super().identity()
        found["votes"]["files"] = [_hash(file) for file in self.votes.files]
        return {**found, "versions": [votes.VERSION, crowd.VERSION]}

    def build(self, session: Session) -> "HumanJudge":
        return HumanJudge(self, cached.member(self.otherwise, session) if self.otherwise else None)

    def summary(self, verdicts: Iterable[Verdict]) -> dict[str, float]:
        """The share of the pairs that people labelled, and in how many of those the judge says the same."""
        from pipeline.agreement import says

        seen = people = both = same = 0
        for verdict in verdicts:
            seen += 1
            people += verdict.evidence.get("decided_by") == NAME
            if {"people", "otherwise"} <= verdict.evidence.keys() and verdict.evidence["otherwise"]["p_a"] is not None:
                both += 1
                same += says(verdict.evidence["people"]["p_a"]) == says(verdict.evidence["otherwise"]["p_a"])
        found = {"people_rate": people / seen} if seen else {}
        return {**found, "agreement_rate": same / both} if both else found


class Said(NamedTuple):
    """What people say of a pair."""

    p_first: float
    """Probability that its first text, in alphabetical order, is the better one."""
    sample: Sample | None


class HumanJudge:
    """See `judges.base.Judge`."""

    def __init__(self, config: Config, otherwise: Judge | None) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()
        self.otherwise = otherwise
        self.said = _said(config.votes)

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        others = ask(self.otherwise, pairs) if self.otherwise else [None] * len(pairs)
        return [self._verdict(pair, other) for pair, other in zip(pairs, others, strict=True)]

    def _verdict(self, pair: Pair, other: Verdict | None) -> Verdict:
        mark, a_first = _mark(pair)
        said = self.said.get(mark)
        p = None if said is None else said.p_first if a_first else 1.0 - said.p_first
        evidence: dict[str, Any] = {} if p is None else {"decided_by": NAME, "people": {"p_a": p}}
        if said is not None and said.sample is not None:
            evidence["people"]["sample"] = said.sample
        if other is not None:
            evidence["otherwise"] = {"judge": other.judge, "p_a": other.p_a, "abstained": other.abstained}
            if p is None:
                evidence |= {"decided_by": other.judge, **unheard(other)}
        decided = other.p_a if p is None and other is not None else p
        reason = "no_vote" if other is None else other.abstained
        return Verdict(
            pair_id=pair.id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=decided,
            abstained=reason if decided is None else None,
            evidence=evidence,
            tokens_in=other.tokens_in if other else 0,
            tokens_out=other.tokens_out if other else 0,
            cost_usd=other.cost_usd if other else 0.0,
        )


def _said(source: Source) -> dict[str, Said]:
    """Mark of a pair -> what people say of it."""
    from pipeline import crowd, votes

    cast = _by_mark(votes.read(source).judgements())
    said: dict[str, Said] = {}
    for verdict in crowd.verdicts(itertools.chain.from_iterable(cast.values()), source.aggregate):
        assert verdict.p_a is not None  # people's votes always come to something
        p_first = verdict.p_a if _first_is_a(verdict.pair_id) else 1.0 - verdict.p_a
        said[verdict.pair_id] = Said(p_first, crowd.sample(cast[verdict.pair_id]))
    return said


def _by_mark(judgements: Iterable[tuple[Pair, Sequence[Vote]]]) -> dict[str, list[Vote]]:
    """Mark of a pair -> the votes on it, with sides as `_first_is_a` draws them.

    Pairs of a file that differ in the system message alone have one mark: their votes are put together. Of several by
    one person the latest counts, and where times do not tell that on the pair that the files bring later.
    """
    found: dict[str, dict[tuple[str, ...], Vote]] = {}
    for pair, cast in judgements:
        mark, a_first = _mark(pair)
        votes = found.setdefault(mark, {})
        for vote in cast:
            # Nobody in particular is somebody else on each pair.
            who = (pair.id, vote.annotator) if vote.annotator.startswith(f"{NOBODY}/") else (vote.annotator,)
            if who in votes and earlier(vote.at, votes[who].at):
                continue  # what is there was said later
            vote = vote if a_first == _first_is_a(mark) else vote.swap()
            votes[who] = vote.model_copy(update={"pair_id": mark})
    return {mark: list(votes.values()) for mark, votes in found.items()}


def _mark(pair: Pair) -> tuple[str, bool]:
    """What the pair is to people, whoever wrote its answers, and whether `a` is the first text of the two."""
    texts = sorted((pair.a.text, pair.b.text))
    # The same prompt may have a system message in the run that people were not shown, or the other way round.
    messages = [_told(message) for message in pair.prompt.messages if message.role != "system"]
    return digest([messages, texts], 32), pair.a.text == texts[0]


def _first_is_a(mark: str) -> bool:
    """Whether the first text in alphabetical order is `a` where votes are put together. It is by chance, because what
    several votes amount to (`pipeline.crowd`) takes it that the better answer is as often one side as the other."""
    return int(mark, 16) % 2 == 0


def _told(message: Message) -> list[str]:
    return [message.role, message.content]


def _hash(file: Path) -> str:
    """Of the file's bytes; of one that is not there, nothing: `lacks` will say so."""
    try:
        found = os.stat(file)
    except OSError:
        return "missing"
    return _hash_of(file, found.st_mtime_ns, found.st_size)


@functools.lru_cache
def _hash_of(file: Path, changed: int, size: int) -> str:
    # A fingerprint is asked for often, and a file of votes can be large.
    return sha256_file(file)
