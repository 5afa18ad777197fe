"""Asks a server that speaks OpenAI's protocol, until there is an answer or a reason why there is none.

The `openai` client's transport makes each HTTP request; everything around it is here, because the client's own retries
are invisible (one call can be three on the bill): every attempt has its row in the ledger and its reserve in the
budget. Some outcomes are an answer, some are tried again after a pause, some say that this question cannot be answered,
and some that no question can, which stops everything at once.

What is left out: what came of an attempt (`judges.replies`), how fast (`judges.pacing`), the books (`judges.ledger`),
and what is asked (`judges.llm`, `judges.rating`).
"""

import asyncio
import atexit
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from judges.ledger import NANO, Ledger, Result
from judges.pacing import Breaker, Gate, Pace, backoff
from judges.replies import (
    AGAIN,
    FATAL,
    NOT_SENT,
    Attempt,
    Outcome,
    Price,
    Reply,
    Request,
    charge_of,
    checked,
    cut,
    message_of,
    outcome_of,
    pause_of,
    read_completion,
)
from pipeline.errors import BudgetError, JudgeError
from pipeline.plugins import Config
from pipeline.records import digest

T = TypeVar("T")

OPENAI = "api.openai.com"
"""The only host that is sent the headers of OPENAI_CUSTOM_HEADERS, OPENAI_ORG_ID and OPENAI_PROJECT_ID."""

CONNECT_S = 5.0
"""Seconds to reach the server."""


class Limits(Config):
    """How hard the server may be worked. Nothing here changes an answer."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "attempts", "outage_s"}
    )

    concurrency: int = Field(default=64, ge=1)
    """Most calls at once. It begins with 20 and grows as long as the server keeps up."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """The provider's limit for the key. None: only what the server's own complaints enforce."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """The provider's limit for the key, question and answer together."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds for one attempt, from sending it to the last byte of the reply."""
    attempts: int = Field(default=10, ge=1)
    """Attempts at one question before the pair is left open (`failed`)."""
    outage_s: float = Field(default=900.0, gt=0)
    """Seconds of failures without any answer after which the run stops; the same command goes on where it was. No
    pause that a server asks for is longer."""


class Client:
    """All that this process asks one server on one account.

    It has an event loop of its own, so that a judge stays an ordinary function.
    """

    def __init__(
        self, base_url: str, api_key: str | None, limits: Limits, price: Price, ledger: Ledger, processes: int = 1
    ) -> None:
        """Args:
        processes: so many share the limits.
        """
        self.base_url = base_url
        self.limits = limits
        self.price = price
        self.ledger = ledger
        self._api_key = api_key
        self._runner = asyncio.Runner()
        self._server: Any = None
        self._transport: Any = None
        self._headers: dict[str, str] = {}
        self._address = f"{base_url}/chat/completions"
        self._stopped: BudgetError | JudgeError | None = None
        self._under_way = 0
        self._most_out = ledger.most_out()
        self._settled = asyncio.Event()
        self._end = asyncio.Event()
        self._short_of_money = asyncio.Lock()
        self._asked: dict[str, asyncio.Future[Reply]] = {}
        self._gate = Gate(max(1, limits.concurrency // processes))
        self._requests = Pace(limits.requests_per_minute, processes)
        self._tokens = Pace(limits.tokens_per_minute, processes)
        self._breaker = Breaker(limits.outage_s)
        atexit.register(self.close)

    def run(self, work: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
        """What these coroutines return, in order; twice as many as calls at once are under way.

        What is under way when something fatal happens is still waited for: it is paid for.

        Raises:
            JudgeError: nothing can be asked any more.
            BudgetError: the next call could pass the budget.
        """
        return self._runner.run(self._run(work))

    async def _run(self, work: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
        results: list[Any] = [None] * len(work)
        numbered = iter(enumerate(work))

        async def worker() -> None:
            for number, each in numbered:
                results[number] = await each()

        # Some wait for the ledger while others wait for the server.
        workers = [asyncio.create_task(worker()) for _ in range(self._at_once(len(work)))]
        done = await asyncio.gather(*workers, return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error
        return results

    def _at_once(self, work: int) -> int:
        return min(work, 2 * self._gate.most + 8)

    async def complete(self, request: Request) -> Reply:
        """The answer to a question: the one that the ledger has, or else the server's, after as many attempts as it
        takes. Whoever asks what is being asked already waits for the same answer.

        Raises:
            JudgeError, BudgetError: as for `run`.
        """
        key = self._key(request)
        if key in self._asked:
            return await asyncio.shield(self._asked[key])
        kept = self.ledger.reply(key)
        if kept is not None and not cut(request, found := Reply.of(kept)):
            return found
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._asked[key] = answer
        try:
            reply = await self._until_answered(key, request)
        except BaseException as error:
            answer.set_exception(error)
            answer.exception()  # seen: whether anybody waits for it or not
            raise
        finally:
            del self._asked[key]
        answer.set_result(reply)
        return reply

    async def directly(self, request: Request) -> Reply:
        """As `complete`, and at once also where questions go into batches."""
        return await Client._until_answered(self, self._key(request), request)

    def _key(self, request: Request) -> str:
        return digest([self.base_url, request.body, request.sample], length=32)

    async def _until_answered(self, key: str, request: Request) -> Reply:
        estimate = request.tokens_in() // 4 + request.max_out
        for number in range(self.limits.attempts):
            while not self._breaker.lets_through():
                await self._sleep(0.25)
            await self._requests.take(1)
            await self._tokens.take(estimate)
            attempt = await self._paid(key, number, request)
            reply = attempt.reply
            self._tokens.give_back(estimate - reply.tokens_in - reply.tokens_out if reply.tokens_in else 0)
            if reply.outcome in FATAL or attempt is NOT_SENT:
                self._go_on()
            if reply.outcome not in AGAIN:
                return reply
            if number + 1 < self.limits.attempts:
                await self._sleep(attempt.pause or backoff(number))
        return reply

    async def _paid(self, key: str, number: int, request: Request) -> Attempt:
        """One attempt, with its reserve before it and its charge after it."""
        while True:
            reserve = self._most(request, self.price)
            call = await self._reserved(key, number, reserve)
            async with self._gate.slot():
                too_little = reserve < self._most(request, self.price)  # as was seen while it waited
                attempt = NOT_SENT if self._stopped or too_little else await self._attempt(request)
                self._learn(attempt)  # before anybody takes the place
            await self._settle(call, key, reserve, attempt)
            if attempt is not NOT_SENT or self._stopped:
                return attempt

    def _most(self, request: Request, price: Price) -> int:
        """Nano-dollars that an attempt can cost, as far as anybody knows. A provider that bills tokens beyond the
        limit that it was told (hidden reasoning) is expected to do so again."""
        return price.nano(request.tokens_in(), max(request.max_out, self._most_out))

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless nothing can be asked any more."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end.wait(), seconds)
        self._go_on()

    async def _reserved(self, key: str, number: int, amount: int) -> int:
        """The number of an attempt that the budget has room for, once it has.

        Raises:
            BudgetError: it has none, and no reserve of a call under way can come back.
        """
        call = None
        if not self._short_of_money.locked():
            self._go_on()
            call = await self.ledger.reserve(key, number, amount)
        if call is None:
            async with self._short_of_money:  # one at a time waits for what the others do not use
                call = await self._once_there_is_money(key, number, amount)
        self._under_way += 1
        return call

    async def _once_there_is_money(self, key: str, number: int, amount: int) -> int:
        while True:
            self._go_on()
            self._settled.clear()
            call = await self.ledger.reserve(key, number, amount)
            if call is not None:
                return call
            if self._under_way:
                await self._settled.wait()
            elif self.ledger.at_work(self.limits.timeout_s + CONNECT_S):
                await self._sleep(0.25)
            else:
                raise self._stop(self._no_money(amount))

    def _no_money(self, amount: int) -> BudgetError:
        charged, budget = self.ledger.charged() / NANO, (self.ledger.budget or 0) / NANO
        return BudgetError(
            f"budget_usd: {charged:.6f} of {budget:.6f} USD are spent, and the next call could cost "
            f"{amount / NANO:.6f}; raise it and run the same command again: what is paid for is kept"
        )

    async def _settle(self, call: int, key: str, reserve: int, attempt: Attempt) -> None:
        reply = attempt.reply
        tokens = (reply.tokens_in, reply.tokens_out)
        kept = reply.kept() if reply.outcome == Outcome.OK else None
        if (attempt.charge or 0) > reserve:
            self._most_out = max(self._most_out, reply.tokens_out)
        result = Result(reply.outcome.value, attempt.charge, *tokens, attempt.seconds, kept)
        try:
            await self.ledger.settle(call, key, reserve, result)
        finally:  # also where it could not be written: others wait for what comes back
            self._under_way -= 1
            self._settled.set()

    def _learn(self, attempt: Attempt) -> None:
        """What an attempt tells of the server; everything is stopped if that is the end."""
        if attempt is NOT_SENT:
            return
        reply = attempt.reply
        self._gate.heard(reply.outcome, attempt.pause)
        self._breaker.heard(reply.outcome)
        if reply.outcome in FATAL:
            self._stop(JudgeError(f"{self.base_url}: {FATAL_WORDS[reply.outcome]} ({reply.detail})"))
        if self._breaker.gave_up():
            self._stop(
                JudgeError(
                    f"{self.base_url}: no answer for {self.limits.outage_s:.0f} s ({reply.detail}); run the same "
                    "command again when the server is back: what was answered is kept"
                )
            )

    async def _attempt(self, request: Request) -> Attempt:
        started = time.monotonic()
        status, headers, content, detail = await self._post(request.body)
        attempt = self._read(request, status, content, self.price, detail)
        pause = min(pause_of(headers, time.time()), self.limits.outage_s)
        return attempt._replace(seconds=time.monotonic() - started, pause=pause)

    def _read(self, request: Request, status: int, content: bytes, price: Price, detail: str = "") -> Attempt:
        """What an HTTP response is worth."""
        if status == 200:
            return checked(request, read_completion(content, price))
        said = detail or f"HTTP {status}: {message_of(content)}"
        return Attempt(Reply(outcome_of(status, content), detail=self._scrubbed(said)), charge_of(status))

    async def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes, str]:
        """Status (0: there was no reply), headers, content, and what went wrong on the way."""
        import httpx2

        server = self._server = self._server or self._connected()
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                # Past `server.post`, which takes as long as all the rest: it models a request that is plain JSON here.
                response = await self._transport.post(self._address, content=content, headers=self._headers)
                return response.status_code, response.headers, response.content, ""
        except TimeoutError:
            return 0, {}, b"", f"no reply from {server.base_url.host} in {self.limits.timeout_s:g} s"
        except (httpx2.HTTPError, OSError, ValueError) as error:
            return 0, {}, b"", f"{type(error).__name__}: {error}"

    def _connected(self) -> Any:
        """The openai client. No retries and no redirects: a redirect would post the prompts to another address."""
        import httpx2
        import openai

        self._transport = openai.DefaultAioHttpClient(
            timeout=httpx2.Timeout(self.limits.timeout_s, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=self._gate.most, max_keepalive_connections=self._gate.most),
            follow_redirects=False,
        )
        # A server on this machine needs no key, and the client insists on one.
        server = openai.AsyncOpenAI(
            base_url=self.base_url, api_key=self._api_key or "none", max_retries=0, http_client=self._transport
        )
        if server.base_url.host != OPENAI:
            # The client adds what the environment has for OpenAI, secrets among it, whatever the address is.
            server.organization = server.project = server.admin_api_key = None
            server._custom_headers = {}
        told = {**server.default_headers, **server.auth_headers}
        self._headers = {name: value for name, value in told.items() if isinstance(value, str)}
        return server

    def _stop(self, error: JudgeError | BudgetError) -> JudgeError | BudgetError:
        self._stopped = self._stopped or error
        self._end.set()
        self._settled.set()
        return self._stopped

    def _go_on(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._api_key, "***") if self._api_key else text

    def close(self) -> None:
        """Let go of connections and of the ledger."""
        atexit.unregister(self.close)
        if self._server is not None:
            self._runner.run(self._server.close())
            self._server = None
        self._runner.close()
        self.ledger.close()


FATAL_WORDS = {
    Outcome.NO_ACCESS: "the key is missing, wrong, or not allowed this; set the variable that `api_key_env` names",
    Outcome.NO_QUOTA: "the provider says that the account has no money left; top it up",
    Outcome.NO_SUCH: "no such model, or no such server; check `model` and `base_url`",
}
