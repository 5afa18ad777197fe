"""The client against a server that fails in every way: each attempt is in the books, and all stops when it must."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Server, judge_server

from judges.client import (
    FREE,
    Breaker,
    Client,
    Gate,
    Limits,
    Outcome,
    Pace,
    Price,
    Reply,
    Request,
    backoff,
    charge_of,
    outcome_of,
    pause_of,
    read_completion,
)
from judges.ledger import Ledger, bill
from pipeline.errors import BudgetError, JudgeError

PRICE = Price(input=0.4, output=1.6)
"""As the server bills."""


def request(number: int = 0, sample: int = 0) -> Request:
    messages = [{"role": "user", "content": f"Which letter, {number}?"}]
    return Request({"model": "m", "messages": messages, "max_tokens": 1}, 1, sample)


def client(server: Server, top: Path, budget: float | None = None, price: Price = PRICE, **limits: Any) -> Client:
    ledger = Ledger(top / "journal.sqlite", "run", "label", "llm", budget)
    return Client(server.url, None, Limits(**{"timeout_s": 0.5, **limits}), price, ledger)


def ask(asked: Client, count: int = 1, first: int = 0) -> list[Reply]:
    def one(number: int) -> Callable[[], Any]:
        return lambda: asked.complete(request(number))

    return asked.run([one(number) for number in range(first, first + count)])


def charged(top: Path) -> int:
    return Ledger(top / "journal.sqlite", "run").charged()


# ---- against a server


@pytest.mark.parametrize(
    "kind",
    ["429 after", "429 after ms", "429", "500", "503", "hang", "cut before", "cut inside", "truncated json", "html",
     "no choices", "empty choices"],
)  # fmt: skip
def test_a_fault_is_tried_again_and_every_attempt_is_in_the_books(kind: str, tmp_path: Path) -> None:
    with judge_server(only=kind, first=1) as server:
        (reply,) = ask(client(server, tmp_path))
        assert (reply.outcome, reply.text) == (Outcome.OK, "K")
        (line,) = bill(tmp_path / "journal.sqlite", "run")
        assert (line.calls, line.failed) == (2, 1)
        assert charged(tmp_path) >= server.tell("stats")["bill"] > 0


@pytest.mark.parametrize(("kind", "outcome"), [("refusal", Outcome.REFUSED), ("filter", Outcome.FILTERED)])
def test_what_the_model_declines_is_no_answer_and_is_not_asked_again(
    kind: str, outcome: Outcome, tmp_path: Path
) -> None:
    with judge_server(only=kind, first=9) as server:
        for _ in range(2):
            assert ask(client(server, tmp_path))[0].outcome == outcome
        assert server.tell("stats")["calls"] == 1


def test_after_its_attempts_a_question_is_given_up_with_its_reason(tmp_path: Path) -> None:
    with judge_server(only="500", first=99) as server:
        (reply,) = ask(client(server, tmp_path, attempts=2))
        assert reply.outcome == Outcome.TRANSIENT
        assert "HTTP 500: server error" in reply.detail


def test_the_same_question_is_asked_once_by_many_at_once_and_never_again(tmp_path: Path) -> None:
    with judge_server(latency=0.05) as server:
        asked = client(server, tmp_path)
        replies = asked.run([lambda: asked.complete(request(7)) for _ in range(30)])
        assert {reply.text for reply in replies} == {"K"}
        assert ask(client(server, tmp_path), first=7)[0].text == "K"
        assert server.tell("stats")["calls"] == 1


def test_samples_of_one_question_are_questions_of_their_own(tmp_path: Path) -> None:
    with judge_server() as server:
        asked = client(server, tmp_path)
        asked.run([lambda: asked.complete(request(sample=0)), lambda: asked.complete(request(sample=1))])
        assert server.tell("stats")["calls"] == 2


@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_budget_is_kept_to_the_call_and_used_up_to_one(concurrency: int, tmp_path: Path) -> None:
    most = PRICE.nano(request(100).tokens_in(), 1)
    budget = 20_000e-9
    with judge_server(latency=0.01) as server:
        with pytest.raises(BudgetError, match=r"budget_usd: 0\.0000\d+ of 0\.000020 USD are spent"):
            ask(client(server, tmp_path, budget, concurrency=concurrency), 200)
        spent, stats = charged(tmp_path), server.tell("stats")
        assert stats["bill"] == spent <= 20_000  # nothing failed, so the books agree to the nano-dollar
        assert 20_000 - spent < most
        # Raised, it goes on where it was and asks nothing twice.
        assert len(ask(client(server, tmp_path, 1.0, concurrency=concurrency), 200)) == 200
        assert server.tell("stats")["calls"] == 200


def test_faults_are_charged_at_the_most_that_they_can_have_cost_and_never_pass_the_budget(tmp_path: Path) -> None:
    with judge_server(faults=0.5) as server:
        asked = client(server, tmp_path, 60_000e-9, concurrency=8, timeout_s=0.2)
        with pytest.raises(BudgetError):
            ask(asked, 300)
        assert server.tell("stats")["bill"] <= charged(tmp_path) <= 60_000


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "the key is missing, wrong"), (403, "not allowed"), (402, "no money left"), (429, "no money left"),
     (404, "check `model` and `base_url`")],
)  # fmt: skip
def test_what_no_question_can_be_answered_after_stops_everything_at_once(
    status: int, words: str, tmp_path: Path
) -> None:
    with judge_server(broken_after=20, broken_status=status, latency=0.01) as server:
        with pytest.raises(JudgeError, match=words):
            ask(client(server, tmp_path, concurrency=4), 300)
        assert server.tell("stats")["calls"] <= 20 + 4
        assert charged(tmp_path) == server.tell("stats")["bill"]


def test_a_key_is_in_no_message_and_on_no_disk(tmp_path: Path) -> None:
    with judge_server(broken_after=1, broken_status=401) as server:
        ledger = Ledger(tmp_path / "journal.sqlite", "run")
        asked = Client(server.url, "sk-canary", Limits(timeout_s=0.5), PRICE, ledger)
        ask(asked)
        with pytest.raises(JudgeError) as caught:
            ask(asked, 2, first=1)
    assert "sk-canary" not in str(caught.value) and "***" in str(caught.value)
    asked.close()
    assert not [path for path in tmp_path.iterdir() if b"sk-canary" in path.read_bytes()]


def test_a_redirect_does_not_take_the_prompts_to_another_address(tmp_path: Path) -> None:
    with judge_server() as server:
        moved = Server(0)
        moved.url = server.url.replace("/v1", "/moved/v1")
        with pytest.raises(JudgeError, match="no such server"):
            ask(client(moved, tmp_path))
        assert server.tell("stats")["calls"] == 0


def test_a_server_that_is_down_is_left_alone_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judges.client.PROBE_S", 0.1)
    with judge_server(only="503", first=10**6) as server:
        asked = client(server, tmp_path, concurrency=8, outage_s=1.0, attempts=100)
        started = time.monotonic()
        with pytest.raises(JudgeError, match=r"no answer for 1 s .*run the same command again when the server is back"):
            ask(asked, 50)
        assert time.monotonic() - started < 8
        # 20 in a row, those that were under way, and then one at a time.
        assert server.tell("stats")["calls"] < 60


def test_calls_at_once_grow_slowly_and_never_over_the_limit(tmp_path: Path) -> None:
    with judge_server(latency=0.02) as server:
        ask(client(server, tmp_path, concurrency=32), 400)
        assert 20 < server.tell("stats")["most_inside"] <= 32


def test_a_rate_of_requests_is_kept(tmp_path: Path) -> None:
    with judge_server() as server:
        started = time.monotonic()
        ask(client(server, tmp_path, requests_per_minute=600), 21)
        assert time.monotonic() - started >= 2.0  # 20 pauses of a tenth of a second


# ---- what a response means


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (0, b"", Outcome.TRANSIENT),
        (400, b'{"error": {"message": "bad", "code": null, "type": "invalid_request_error"}}', Outcome.REJECTED),
        (400, b'{"error": {"message": "x", "code": "context_length_exceeded"}}', Outcome.TOO_LONG),
        (400, b'{"error": {"message": "This model\'s maximum context length is 4096", "code": 400}}', Outcome.TOO_LONG),
        (400, b'{"error": {"message": "x", "code": "content_filter"}}', Outcome.FILTERED),
        (401, b"", Outcome.NO_ACCESS),
        (402, b"", Outcome.NO_QUOTA),
        (404, b"", Outcome.NO_SUCH),
        (307, b"", Outcome.NO_SUCH),
        (408, b"", Outcome.TRANSIENT),
        (409, b"", Outcome.TRANSIENT),
        (422, b"not json", Outcome.REJECTED),
        (429, b'{"error": {"message": "x", "code": "rate_limit_exceeded"}}', Outcome.RATE_LIMITED),
        (429, b'{"error": {"message": "x", "type": "insufficient_quota"}}', Outcome.NO_QUOTA),
        (500, b"<html>", Outcome.TRANSIENT),
        (529, b"", Outcome.TRANSIENT),
    ],
)
def test_a_status_and_its_body_are_one_outcome(status: int, body: bytes, outcome: Outcome) -> None:
    assert outcome_of(status, body) == outcome


@pytest.mark.parametrize(
    ("status", "charge"), [(400, 0), (429, 0), (500, 0), (503, 0), (529, 0), (502, None), (504, None), (0, None)]
)
def test_a_gateway_may_have_cost_and_a_refused_request_has_not(status: int, charge: int | None) -> None:
    assert charge_of(status) == charge


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "300"}, 300.0),
        ({"retry-after": "Wed, 25 Nov 2026 00:00:30 GMT"}, 30.0),
        ({"retry-after": "Tue, 24 Nov 2026 00:00:30 GMT"}, 0.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "inf"}, 0.0),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-tokens": "whenever"}, 0.0),
        ({}, 0.0),
    ],
)
def test_a_server_is_waited_for_as_long_as_it_asks(headers: dict[str, str], seconds: float) -> None:
    midnight = 1795564800.0  # Wed, 25 Nov 2026 00:00:00 GMT
    assert pause_of(headers, midnight) == pytest.approx(seconds)


@given(st.binary(max_size=200) | st.sampled_from([b"{}", b"[]", b"null", b'{"choices": [{}]}', b'{"choices": [null]}']))
def test_no_bytes_that_are_no_completion_become_an_answer(content: bytes) -> None:
    assert read_completion(content, FREE).reply.outcome == Outcome.MALFORMED


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, {"prompt_tokens": "9"}, {"prompt_tokens": -1}])
def test_a_bill_that_is_missing_is_the_reserve(usage: Any, tmp_path: Path) -> None:
    import json

    body = {"choices": [{"message": {"content": "K"}, "finish_reason": "stop"}], "usage": usage}
    attempt = read_completion(json.dumps(body).encode(), PRICE)
    assert (attempt.reply.outcome, attempt.reply.tokens_in, attempt.charge) == (Outcome.OK, 0, None)


def test_a_price_is_rounded_up_to_whole_nano_dollars() -> None:
    # 100 tokens at 0.4 dollars a million and 10 at 1.6: 0.00004 + 0.000016 dollars.
    assert PRICE.nano(100, 10) == 56_000
    assert Price(input=0.0001, output=0).nano(1, 0) == 1
    assert FREE.nano(10**9, 10**9) == 0


@given(st.text(max_size=300))
def test_a_question_never_has_more_tokens_than_it_is_reserved_for(text: str) -> None:
    # A byte-level tokenizer, the worst there is, has a token a byte; a chat template adds some for each message.
    asked = Request({"messages": [{"role": "user", "content": text}]}, 1)
    assert asked.tokens_in() >= len(text.encode()) + 16


# ---- how fast, with a clock of our own


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


def test_the_breaker_gives_up_only_while_it_is_open() -> None:
    clock = Clock()
    breaker = Breaker(60, clock)
    clock.now += 100
    assert not breaker.gave_up()
    for _ in range(20):
        breaker.heard(Outcome.TRANSIENT)
    assert breaker.gave_up()


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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "pauses_are_random" not in request.node.name:
        monkeypatch.setattr("judges.client.BACKOFF_S", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        os.environ.pop(name, None)
