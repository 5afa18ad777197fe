"""Never asks the same question twice: verdicts come from the journal where it has them, else from the wrapped judge.

Not a judge that a recipe names (there is no Config here): labelling, comparing and the judges that are made of judges
reach whatever judge they are given through `member`, so that two recipes that share a judge pay for it once.
A question is the judge's fingerprint and everything of the pair that a judge may look at, its side order included, so
that a pair and its exchange are two questions and a judge with a position bias is replayed as it answered.

What is left out: who pays for a call that was under way when the process died (the client's journal rows do that).
"""

from collections.abc import Sequence

from judges.base import Judge, JudgeConfig, Session, ask
from pipeline.records import Pair, Verdict, digest
from pipeline.store import Journal

KIND = "verdict"
"""The kind of the journal's rows."""

TRANSIENT = frozenset({"failed", "refused", "filtered"})
"""Abstentions that asking again may mend. They are not stored: a server that was down would else be down for ever.
Nor is a verdict made of several, such as a
panel's, that lacks one for such a reason (`judges.base.unheard`)."""

AT_A_SERVER = TRANSIENT | {"truncated"}
"""The same of a judge that is not in this process: a server's context may be raised, and nothing here would change."""

UNSEEN = {"n_tokens": True, "logprob": True, "ref_logprob": True}
"""Fields of a Response that no judge looks at. Log-probabilities differ in their last digits between machines, and
that must not buy a label twice."""


def member(config: JudgeConfig, session: Session) -> "Cached | Lazy":
    """The judge of this Config with the session's memory; a session without a journal has none."""
    judge = Lazy(config, session)
    if session.journal is None:
        return judge
    return Cached(judge, config.fingerprint(), Journal(session.journal), by_prompt=config.window <= 1)


class Lazy:
    """A judge that is built when it is first asked, so that nothing loads where the journal knows every answer."""

    def __init__(self, config: JudgeConfig, session: Session) -> None:
        self.config = config
        self.session = session
        self._built: Judge | None = None

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """See `judges.base.Judge`."""
        if self._built is None:
            self._built = self.config.build(self.session)
        return self._built.judge(pairs)


class Cached:
    """A judge with a memory."""

    def __init__(self, judge: Judge, fingerprint: str, journal: Journal, *, by_prompt: bool = False) -> None:
        """With `by_prompt` it asks about one prompt at a time and keeps those verdicts before it asks on: a judge that
        computes in this process gains nothing by larger questions, and a kill would lose them."""
        self.of = judge
        self.fingerprint = fingerprint
        self.journal = journal
        self.by_prompt = by_prompt
        self.passing = TRANSIENT if by_prompt else AT_A_SERVER

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict per pair, in order; only pairs that the journal does not hold reach the wrapped judge."""
        keys = [self.key(pair) for pair in pairs]
        known = self._read(keys)
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        for asked in self._together(missing):
            known |= self._answer(asked)
        return [known[key] for key in keys]

    def key(self, pair: Pair) -> str:
        """Where the verdict on this pair with these sides is kept."""
        seen = pair.model_dump(mode="json", exclude={"a": UNSEEN, "b": UNSEEN})
        return digest([self.fingerprint, seen], length=32)

    def _together(self, missing: dict[str, Pair]) -> list[dict[str, Pair]]:
        """What is asked about at once."""
        groups: dict[str, dict[str, Pair]] = {}
        for key, pair in missing.items():
            groups.setdefault(pair.prompt.id if self.by_prompt else "", {})[key] = pair
        return list(groups.values())

    def _answer(self, missing: dict[str, Pair]) -> dict[str, Verdict]:
        fresh = dict(zip(missing, ask(self.of, list(missing.values())), strict=True))
        lasting = {
            key: verdict
            for key, verdict in fresh.items()
            if self.passing.isdisjoint([verdict.abstained, *verdict.evidence.get("unheard", ())])
        }
        self.journal.put_many(KIND, {key: verdict.model_dump(mode="json") for key, verdict in lasting.items()})
        # Read back: where another process answered the same question first, its answer is the one everybody sees.
        return fresh | self._read(list(lasting))

    def _read(self, keys: Sequence[str]) -> dict[str, Verdict]:
        rows = self.journal.get_many(KIND, keys)
        return {key: Verdict.model_validate(row) for key, row in rows.items()}
