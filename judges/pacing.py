"""How fast a server may be asked: calls at once, calls and tokens a minute, and not at all while it seems to be down.

What is left out: the calls (`judges.client`). Nothing here knows what is asked.
"""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from judges.replies import AGAIN, Outcome

OUTAGE_AFTER = 20
"""Failures in a row that look like a server that is down."""

PROBE_S = 15.0
"""Seconds before the first attempt after that; doubled for each that fails, up to `PROBE_MAX_S`."""

PROBE_MAX_S = 300.0

COOLDOWN_S = 15.0
"""Seconds in which several "too many requests" are one: the server answers late to what was sent before the cut."""

BACKOFF_S = 0.5
BACKOFF_MAX_S = 60.0


def backoff(attempt: int) -> float:
    """Seconds before the next attempt: anything up to a ceiling that doubles, so that many clients do not march."""
    return random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_S * 2**attempt))


class Gate:
    """As many calls at once as the server takes: doubled while it keeps up, a fifth less when it complains, then
    grown by a twentieth (additive-increase, multiplicative-decrease; inspect_ai's constants)."""

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.limit = min(20, most)
        self.inside = 0
        self._now = now
        self._doubling = True
        self._clean = 0
        self._cut_until = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One of the places, when there is one."""
        if self.inside < self.limit and not self._waiting:
            self.inside += 1
        else:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await place
        try:
            yield
        finally:
            self.inside -= 1
            self._let_in()

    def heard(self, outcome: Outcome, pause: float) -> None:
        """Learn from an attempt that ended."""
        if outcome == Outcome.RATE_LIMITED:
            self._clean, self._doubling = 0, False
            if self._now() >= self._cut_until:
                self.limit = max(1, int(self.limit * 0.8))
                self._cut_until = self._now() + max(COOLDOWN_S, pause)
        elif outcome in AGAIN:
            self._clean = 0
        elif self.inside >= 0.8 * self.limit or self._waiting:  # a place that nobody wants says nothing
            self._clean += 1
            if self._clean >= max(self.limit, 4):
                grown = 2 * self.limit if self._doubling else math.ceil(self.limit * 1.05)
                self.limit, self._clean = min(self.most, grown), 0
                self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.inside < self.limit:
            place = self._waiting.popleft()
            if not place.done():
                self.inside += 1  # now and not when it wakes, or others would slip in between
                place.set_result(None)


class Pace:
    """No more than so many a minute, evenly. Whoever takes waits until what was taken before is paid for by time."""

    def __init__(self, per_minute: int | None, processes: int = 1) -> None:
        self.seconds_each = 0.0 if per_minute is None else 60.0 * processes / per_minute
        self._free_at = 0.0

    async def take(self, amount: int) -> None:
        """Wait for one's turn to use so many."""
        if self.seconds_each:
            now = time.monotonic()
            turn = max(now, self._free_at)
            self._free_at = turn + amount * self.seconds_each
            if turn > now:
                await asyncio.sleep(turn - now)

    def give_back(self, amount: int) -> None:
        """So many of those taken were not used (or, below 0, more were)."""
        self._free_at += -amount * self.seconds_each


class Breaker:
    """Stops asking when the server seems to be down, and then tries with one call at a time, ever less often."""

    def __init__(self, outage_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.outage_s = outage_s
        self._now = now
        self._down_since: float | None = None
        self._in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=100)
        self._pause = 0.0
        self._try_at = 0.0
        self._trying = False

    def lets_through(self) -> bool:
        """True if a call may be made now; while the server seems down, one at a time and only now and then."""
        if not self._pause:
            return True
        if self._trying or self._now() < self._try_at:
            return False
        self._trying = True
        return True

    def heard(self, outcome: Outcome) -> None:
        """Learn from an attempt that ended."""
        down = outcome in (Outcome.TRANSIENT, Outcome.MALFORMED)
        self._recent.append(down)
        if not down:
            self._down_since, self._in_a_row, self._pause, self._trying = None, 0, 0.0, False
            return
        if self._down_since is None:  # and not since the last answer: nobody may have asked for hours
            self._down_since = self._now()
        self._in_a_row += 1
        if self._trying:
            self._open(min(PROBE_MAX_S, 2 * self._pause))
        elif not self._pause and (self._in_a_row >= OUTAGE_AFTER or sum(self._recent) > self._recent_limit()):
            self._open(PROBE_S)

    def gave_up(self) -> bool:
        """True if all has failed for longer than the recipe will wait."""
        return bool(self._pause) and self._down_since is not None and self._now() - self._down_since > self.outage_s

    def _recent_limit(self) -> float:
        return 50 if len(self._recent) == self._recent.maxlen else math.inf

    def _open(self, pause: float) -> None:
        self._pause, self._try_at, self._trying = pause, self._now() + pause, False
        self._recent.clear()
