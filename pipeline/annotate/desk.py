"""Which pair an annotator sees next and on which sides, and what becomes of what they say.

A page gets a pair that no other page was handed in the last ten minutes, unless two people shall vote on it: so two
tabs of one person, or two persons, do not do the same work. If they do all the same, of one person the last word
counts, and two persons are two votes. Whoever voted on a pair for the judge's doubt is asked again if it is drawn at
random later (`--control`), because a sample without such pairs would be one of the easier ones. Sides are drawn by a
hash of the annotator and the pair: a page that is loaded again shows the same ones.

What is left out: HTTP (`pipeline.annotate.server`), and the disk (`pipeline.annotate.ballots`).
"""

import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple, cast

from pipeline.annotate.ballots import Ballot, Ballots, Order, Said
from pipeline.annotate.material import Item
from pipeline.records import seed_of

Choice = Literal["left", "right", "tie", "skip"]

HELD_S = 600.0
"""Seconds for which a pair that a page was handed is not handed to another."""


class Refused(Exception):
    """A question or an answer that does not fit; `code` is for the page, which has words for it."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class _Held(NamedTuple):
    annotator: str
    page: str
    until: float


class Desk:
    """Hands pairs to annotators and takes their votes. May be used by several threads."""

    def __init__(self, items: Sequence[Item], ballots: Ballots, seed: int) -> None:
        self.items = {item.pair.id: item for item in items}
        """In the order in which they are asked."""
        self.ballots = ballots
        self.seed = seed
        self._held: dict[str, list[_Held]] = {}
        self._lock = threading.Lock()

    def next(self, annotator: str, page: str, wanted: str | None = None) -> dict[str, Any]:
        """What the page shows: the next pair or the `wanted` one, progress, and what can be undone."""
        with self._lock:
            standing = self.ballots.standing()
            self._held = _alive(self._held)
            settled = {key: ballot for key, ballot in standing.items() if not self._drawn_since(ballot)}
            done = Counter(pair for (_, pair), ballot in settled.items() if ballot.said != "skip")
            item = self.items.get(wanted) if wanted else self._free(annotator, page, settled.keys(), done)
            self._let_go(page)
            if item is not None:
                held = _Held(annotator, page, time.monotonic() + HELD_S)
                self._held.setdefault(item.pair.id, []).append(held)
        # What they said of other rounds is no part of this work.
        mine = [each for (who, pair), each in standing.items() if who == annotator and pair in self.items]
        return {
            "question": self._question(item, annotator) if item else None,
            "progress": self._progress(mine, done),
            "last": mine[-1].pair_id if mine else None,
        }

    def vote(self, annotator: str, page: str, pair: str, choice: Choice, note: str) -> dict[str, Any]:
        """Keep a vote, and only then say what is next.

        Raises:
            Refused: the pair is not among those of this run.
        """
        item = self._item(pair)
        shown = self.sides(annotator, pair)
        said = {"left": shown[0], "right": shown[1]}.get(choice, choice)
        self.ballots.cast(item, annotator, cast(Said, said), shown, note)
        return self.next(annotator, page)

    def undo(self, annotator: str, page: str, pair: str) -> dict[str, Any]:
        """Take back what was said about this pair and show it again, with what was said. Twice does no harm.

        Raises:
            Refused: the pair is not among those of this run.
        """
        item = self._item(pair)
        before = self.ballots.standing().get((annotator, pair))
        if before is not None:
            self.ballots.cast(item, annotator, "undo", before.shown, before.note)
        found = self.next(annotator, page, wanted=pair)
        return found | {"undone": {"choice": _seen(before), "note": before.note} if before else None}

    def sides(self, annotator: str, pair: str) -> Order:
        """Which answer this annotator sees on the left."""
        return "ba" if seed_of(self.seed, "sides", annotator, pair) % 2 else "ab"

    def _drawn_since(self, ballot: Ballot) -> bool:
        """Whether the pair is in the random sample now, and was not when this was said."""
        item = self.items.get(ballot.pair_id)
        return item is not None and (item.sample, ballot.sample) == ("control", "unsure")

    def _item(self, pair: str) -> Item:
        if pair not in self.items:
            raise Refused("unknown_pair")
        return self.items[pair]

    def _free(self, annotator: str, page: str, said: Collection[tuple[str, str]], done: Counter[str]) -> Item | None:
        """The first pair that this annotator has not spoken of and that nobody else is about to finish.

        One that another page has is better than none: a page that was closed does not say so.
        """
        spare = None
        for name, item in self.items.items():
            if (annotator, name) in said or done[name] >= item.needed:
                continue
            others = {each.annotator for each in self._held.get(name, ()) if each.page != page}
            if annotator not in others and len(others) + done[name] < item.needed:
                return item
            spare = spare or item
        return spare

    def _let_go(self, page: str) -> None:
        for name, held in self._held.items():
            self._held[name] = [each for each in held if each.page != page]

    def _question(self, item: Item, annotator: str) -> dict[str, Any]:
        shown = self.sides(annotator, item.pair.id)
        left, right = (item.pair.a, item.pair.b) if shown == "ab" else (item.pair.b, item.pair.a)
        # Nothing that tells who wrote an answer, or what the judge thinks of it.
        return {
            "pair": item.pair.id,
            "lang": item.pair.prompt.lang,
            "messages": [[message.role, message.content] for message in item.pair.prompt.messages],
            "left": left.text,
            "right": right.text,
        }

    def _progress(self, mine: Sequence[Ballot], done: Counter[str]) -> dict[str, int]:
        return {
            "mine": sum(ballot.said != "skip" for ballot in mine),
            "skipped": sum(ballot.said == "skip" for ballot in mine),
            "done": sum(min(done[name], item.needed) for name, item in self.items.items()),
            "needed": sum(item.needed for item in self.items.values()),
        }


def _alive(held: dict[str, list[_Held]]) -> dict[str, list[_Held]]:
    now = time.monotonic()
    kept = ((name, [each for each in pages if each.until > now]) for name, pages in held.items())
    return {name: pages for name, pages in kept if pages}


def _seen(ballot: Ballot) -> Choice:
    """What was said, in the sides that were seen."""
    sides = {ballot.shown[0]: "left", ballot.shown[1]: "right"}
    return cast(Choice, sides.get(ballot.said, ballot.said))
