"""How fast a server is asked, with a clock of our own."""

import asyncio
import time

from judges.pacing import Breaker, Gate, Pace, backoff
from judges.replies import Outcome


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def saturated(gate: Gate, outcome: Outcome, times: int, pause: float = 0.0) -> None:
    gate.inside = gate.limit
    for _ in range(times):
        gate.heard(outcome, pause)


def test_the_gate_doubles_while_the_server_keeps_up_and_after_a_complaint_grows_by_a_twentieth() -> None:
    clock = Clock()
    gate = Gate(100, clock)
    saturated(gate, Outcome.OK, 20)
    assert gate.limit == 40
    saturated(gate, Outcome.RATE_LIMITED, 5)
    assert gate.limit == 32  # five complaints in one breath are one
    saturated(gate, Outcome.OK, 32)
    assert gate.limit == 34  # ceil(32 * 1.05)
    clock.now += 16
    saturated(gate, Outcome.RATE_LIMITED, 1, pause=60)
    assert gate.limit == 27
    clock.now += 16
    saturated(gate, Outcome.RATE_LIMITED, 1)
    assert gate.limit == 27  # the server asked for a minute
    clock.now += 60
    saturated(gate, Outcome.RATE_LIMITED, 1)
    assert gate.limit == 21


def test_places_that_nobody_wants_and_failures_do_not_widen_the_gate() -> None:
    gate = Gate(100)
    for _ in range(200):
        gate.heard(Outcome.OK, 0)
    assert gate.limit == 20
    for _ in range(30):
        saturated(gate, Outcome.OK, 19)
        gate.heard(Outcome.TRANSIENT, 0)
    assert gate.limit == 20
    assert Gate(4).limit == 4


def test_no_more_are_inside_than_the_gate_allows_whoever_comes_and_goes() -> None:
    async def work() -> int:
        gate, seen = Gate(3), 0

        async def one(number: int) -> None:
            nonlocal seen
            async with gate.slot():
                seen = max(seen, gate.inside)
                await asyncio.sleep(0.001 * (number % 3))

        await asyncio.gather(*(one(number) for number in range(100)))
        assert gate.inside == 0
        return seen

    assert asyncio.run(work()) == 3


def test_the_breaker_opens_after_twenty_failures_and_tries_one_call_ever_less_often() -> None:
    clock = Clock()
    breaker = Breaker(900, clock)
    for _ in range(19):
        breaker.heard(Outcome.TRANSIENT)
    assert breaker.lets_through()
    breaker.heard(Outcome.MALFORMED)
    assert not breaker.lets_through()
    clock.now += 15
    assert [breaker.lets_through(), breaker.lets_through()] == [True, False]  # one alone
    breaker.heard(Outcome.TRANSIENT)
    clock.now += 29
    assert not breaker.lets_through()
    clock.now += 1
    assert breaker.lets_through()
    breaker.heard(Outcome.RATE_LIMITED)  # a complaint is a sign of life
    assert [breaker.lets_through() for _ in range(3)] == [True] * 3


def test_the_breaker_opens_when_more_than_half_of_the_last_hundred_failed() -> None:
    breaker = Breaker(900)
    for number in range(100):
        breaker.heard(Outcome.TRANSIENT if number % 2 else Outcome.OK)
    assert breaker.lets_through()
    breaker.heard(Outcome.TRANSIENT)
    breaker.heard(Outcome.TRANSIENT)
    assert not breaker.lets_through()


def test_an_outage_begins_with_the_first_failure_however_long_nobody_asked_before() -> None:
    clock = Clock()
    breaker = Breaker(60, clock)
    breaker.heard(Outcome.OK)
    clock.now += 3600  # a long batch, or training between two rounds of labels
    for _ in range(20):
        breaker.heard(Outcome.TRANSIENT)
    assert not breaker.gave_up()
    clock.now += 59
    breaker.heard(Outcome.TRANSIENT)
    assert not breaker.gave_up()
    clock.now += 2
    breaker.heard(Outcome.TRANSIENT)
    assert breaker.gave_up()
    breaker.heard(Outcome.RATE_LIMITED)
    assert not breaker.gave_up()
    clock.now += 3600
    breaker.heard(Outcome.TRANSIENT)
    assert not breaker.gave_up()


def test_failures_over_a_long_time_are_no_outage_before_the_breaker_opens() -> None:
    clock = Clock()
    breaker = Breaker(60, clock)
    for _ in range(19):
        breaker.heard(Outcome.TRANSIENT)
        clock.now += 10
    assert not breaker.gave_up()


def test_a_pace_without_a_limit_waits_for_nothing_and_unused_tokens_come_back() -> None:
    async def work(pace: Pace) -> float:
        started = time.monotonic()
        for _ in range(3):
            await pace.take(100)
            pace.give_back(90)
        return time.monotonic() - started

    assert asyncio.run(work(Pace(None))) < 0.1
    # 6000 a minute are 100 a second: without what comes back, two pauses of a second.
    assert asyncio.run(work(Pace(6000))) < 0.7


def test_pauses_are_random_and_bounded() -> None:
    for attempt in range(12):
        pauses = {backoff(attempt) for _ in range(20)}
        assert len(pauses) > 1
        assert max(pauses) <= min(60.0, 0.5 * 2**attempt)
