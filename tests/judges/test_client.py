"""The client against a server that fails in every way: each attempt is in the books, and all stops when it must."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import Server, judge_server

from judges.batch import BatchClient, BatchConfig
from judges.client import Client, Limits
from judges.ledger import Ledger, bill
from judges.replies import (
    Outcome,
    Price,
    Reply,
    Request,
)
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
     "no choices", "empty choices", "choice error"],
)  # fmt: skip
def test_a_fault_is_tried_again_and_every_attempt_is_in_the_books(kind: str, tmp_path: Path) -> None:
    with judge_server(only=kind, first=1) as server:
        (reply,) = ask(client(server, tmp_path))
        assert (reply.outcome, reply.text) == (Outcome.OK, "K")
        (line,) = bill(tmp_path / "journal.sqlite", "run")
        assert (line.calls, line.failed) == (2, 1)
        assert charged(tmp_path) >= server.tell("stats")["bill"] > 0


def test_no_pause_that_a_server_asks_for_is_longer_than_an_outage_may_be(tmp_path: Path) -> None:
    with judge_server(only="429 until", first=1) as server:
        started = time.monotonic()
        assert ask(client(server, tmp_path, outage_s=0.5))[0].text == "K"
        assert 0.5 <= time.monotonic() - started < 5


def test_an_answer_without_a_token_is_none_and_is_asked_for_again(tmp_path: Path) -> None:
    with judge_server(only="no tokens", first=1) as server:
        assert ask(client(server, tmp_path))[0].text == "K"
        assert server.tell("stats")["calls"] == 2


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("refusal", Outcome.REFUSED), ("filter", Outcome.FILTERED), ("flagged", Outcome.FILTERED)],
)
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


def test_after_a_bill_above_its_reserve_no_reserve_is_smaller_than_what_was_billed(tmp_path: Path) -> None:
    budget = 4_500_000e-9
    with judge_server(reasoning=386) as server:  # 617,600 nano-dollars that no limit of tokens holds back
        for _ in range(2):
            with pytest.raises(BudgetError):
                ask(client(server, tmp_path, budget, concurrency=1), 200)
        assert server.tell("stats")["bill"] == charged(tmp_path) <= 4_500_000
        assert server.tell("stats")["calls"] == 7  # at 622,800 each


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


AMBIENT = {
    "OPENAI_CUSTOM_HEADERS": "X-Gateway: canary\nAuthorization: Bearer canary",
    "OPENAI_ORG_ID": "canary",
    "OPENAI_PROJECT_ID": "canary",
    "OPENAI_ADMIN_KEY": "canary",
    "OPENAI_API_KEY": "canary",
}
"""What the openai client takes from the environment by itself."""


@pytest.mark.parametrize("batch", [None, BatchConfig(poll_s=0.05)])
def test_what_the_environment_has_for_openai_goes_to_no_other_server(
    batch: BatchConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in AMBIENT.items():
        monkeypatch.setenv(name, value)
    told = (Limits(timeout_s=5), PRICE, Ledger(tmp_path / "journal.sqlite", "run"))
    with judge_server() as server:
        key = "sk-own"
        asked = BatchClient(server.url, key, *told, batch=batch) if batch else Client(server.url, key, *told)
        assert ask(asked)[0].text == "K"
        heads = server.tell("heads")
    assert ("/v1/batches" in heads) == bool(batch)
    assert "canary" not in str(heads) and "openai-organization" not in str(heads)
    assert all("authorization: bearer sk-own" in head for path, head in heads.items() if "heads" not in path)


def test_openai_itself_is_told_the_organisation_and_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in AMBIENT.items():
        monkeypatch.setenv(name, value)
    ledger = Ledger(tmp_path / "journal.sqlite", "run")
    asked = Client("https://api.openai.com/v1", "sk-own", Limits(), PRICE, ledger)
    asked._connected()
    told = {name: asked._headers[name] for name in ("OpenAI-Organization", "OpenAI-Project", "Authorization")}
    assert told == {"OpenAI-Organization": "canary", "OpenAI-Project": "canary", "Authorization": "Bearer sk-own"}


def test_a_redirect_does_not_take_the_prompts_to_another_address(tmp_path: Path) -> None:
    with judge_server() as server:
        moved = Server(0)
        moved.url = server.url.replace("/v1", "/moved/v1")
        with pytest.raises(JudgeError, match="no such server"):
            ask(client(moved, tmp_path))
        assert server.tell("stats")["calls"] == 0


def test_a_server_that_is_down_is_left_alone_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judges.pacing.PROBE_S", 0.1)
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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judges.pacing.BACKOFF_S", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        os.environ.pop(name, None)
