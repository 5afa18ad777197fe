"""Asks a server that speaks OpenAI's protocol, until there is an answer or a reason why there is none.

The `openai` client makes each HTTP request; everything around it is here, because its own retries are invisible (one
call of it can be three on the bill): every attempt has its row in the ledger and its reserve in the budget. What can
happen to an attempt is a closed set, `Outcome`: some are an answer, some are tried again after a pause, some say that
this question cannot be answered, and some that no question can, which stops everything at once.

How fast: as many calls at once as the server takes without complaint (grown slowly, cut when it says "too many"),
no more a minute than the recipe allows, and none at all for a while when it seems to be down.

What is left out: what is asked and what a reply means (`judges.llm`, `judges.rating`).
"""

import asyncio
import atexit
import contextlib
import enum
import json
import math
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import Field

from judges.ledger import Ledger, Result
from pipeline.errors import BudgetError, JudgeError
from pipeline.plugins import Config
from pipeline.records import digest

T = TypeVar("T")

CONNECT_S = 5.0
"""Seconds to reach the server."""

OUTAGE_AFTER = 20
"""Failures in a row that look like a server that is down."""

PROBE_S = 15.0
"""Seconds before the first attempt after that; doubled for each that fails, up to `PROBE_MAX_S`."""

PROBE_MAX_S = 300.0

COOLDOWN_S = 15.0
"""Seconds in which several "too many requests" are one: the server answers late to what was sent before the cut."""

BACKOFF_S = 0.5
BACKOFF_MAX_S = 60.0


class Outcome(enum.StrEnum):
    """Everything that can become of one attempt."""

    OK = "ok"
    REFUSED = "refused"
    """The model declined in so many words."""
    FILTERED = "filtered"
    """The provider's content filter stopped it."""
    RATE_LIMITED = "rate_limited"
    TRANSIENT = "transient"
    """Server error, timeout or lost connection."""
    MALFORMED = "malformed"
    """HTTP 200, and no chat completion in it."""
    TOO_LONG = "too_long"
    """The question does not fit the model's context."""
    REJECTED = "rejected"
    """The server will not take this request, whatever the time."""
    NO_ACCESS = "no_access"
    """The key is missing, wrong, or not allowed this model."""
    NO_QUOTA = "no_quota"
    """The account has no money left, at the provider's."""
    NO_SUCH = "no_such"
    """There is no such model, or nothing at this address."""
    NOT_SENT = "not_sent"
    """Everything had been stopped when its turn came."""


ANSWERS = frozenset({Outcome.OK, Outcome.REFUSED, Outcome.FILTERED})
AGAIN = frozenset({Outcome.RATE_LIMITED, Outcome.TRANSIENT, Outcome.MALFORMED})
FATAL = frozenset({Outcome.NO_ACCESS, Outcome.NO_QUOTA, Outcome.NO_SUCH})


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
    """Seconds without any answer after which the run stops; the same command goes on where it was."""


class Price(Config):
    """US dollars for a million tokens, as the provider's page has them. It changes the bill and no answer."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"input", "output"})

    input: float = Field(ge=0)
    """Tokens of the question."""
    output: float = Field(ge=0)
    """Tokens of the answer, hidden reasoning included."""

    def nano(self, tokens_in: int, tokens_out: int) -> int:
        """Nano-dollars for so many tokens, rounded up."""
        return math.ceil(round((tokens_in * self.input + tokens_out * self.output) * 1000, 6))


FREE = Price(input=0.0, output=0.0)


class Request(NamedTuple):
    """One question: the body of a chat completion, and which of several equal ones it is."""

    body: dict[str, Any]
    """JSON-ready, `model` included."""
    max_out: int
    """Most tokens that the answer can have."""
    sample: int = 0
    """Number among the questions with this body, where a judge asks several times."""

    def tokens_in(self) -> int:
        """No fewer than the question can have: a token is at least a byte, and each message adds a few."""
        messages = self.body["messages"]
        return sum(len(str(message["content"]).encode()) + 16 for message in messages) + 16


@dataclass(frozen=True)
class Reply:
    """What came of a question."""

    outcome: Outcome
    text: str | None = None
    """Of the answer."""
    finish: str | None = None
    """Why the answer ended: `stop`, `length`, ..."""
    logprobs: Sequence[tuple[str, float]] | None = None
    """The likeliest first tokens of the answer with their log-probabilities in nats; None: it came without."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0
    """Nano-dollars, of the attempt that gave the answer."""
    detail: str = ""
    """What the server said, where there is no answer."""

    def kept(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {
            "outcome": self.outcome.value,
            "text": self.text,
            "finish": self.finish,
            "logprobs": self.logprobs,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost": self.cost,
        }

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Reply":
        """The reply that the ledger kept."""
        return cls(**{**kept, "outcome": Outcome(kept["outcome"])})


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
        self._stopped: BudgetError | JudgeError | None = None
        self._under_way = 0
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
        if kept is not None:
            return Reply.of(kept)
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
        reserve = self.price.nano(request.tokens_in(), request.max_out)
        estimate = request.tokens_in() // 4 + request.max_out
        for number in range(self.limits.attempts):
            while not self._breaker.lets_through():
                await self._sleep(0.25)
            await self._requests.take(1)
            await self._tokens.take(estimate)
            call = await self._reserved(key, number, reserve)
            async with self._gate.slot():
                attempt = NOT_SENT if self._stopped else await self._attempt(request)
                self._learn(attempt)  # before anybody takes the place
            await self._settle(call, key, reserve, attempt)
            reply = attempt.reply
            self._tokens.give_back(estimate - reply.tokens_in - reply.tokens_out if reply.tokens_in else 0)
            if reply.outcome in FATAL or attempt is NOT_SENT:
                self._go_on()
            if reply.outcome not in AGAIN:
                return reply
            await self._sleep(attempt.pause or backoff(number))
        return reply

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
        charged, budget = self.ledger.charged() / 1e9, (self.ledger.budget or 0) / 1e9
        return BudgetError(
            f"budget_usd: {charged:.6f} of {budget:.6f} USD are spent, and the next call could cost "
            f"{amount / 1e9:.6f}; raise it and run the same command again: what is paid for is kept"
        )

    async def _settle(self, call: int, key: str, reserve: int, attempt: "Attempt") -> None:
        reply = attempt.reply
        tokens = (reply.tokens_in, reply.tokens_out)
        kept = reply.kept() if reply.outcome == Outcome.OK else None
        charge = reply.cost if reply.outcome in ANSWERS and any(tokens) else attempt.charge
        await self.ledger.settle(
            call, key, reserve, Result(reply.outcome.value, charge, *tokens, attempt.seconds, kept)
        )
        self._under_way -= 1
        self._settled.set()

    def _learn(self, attempt: "Attempt") -> None:
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

    async def _attempt(self, request: Request) -> "Attempt":
        started = time.monotonic()
        status, headers, content, detail = await self._post(request.body)
        attempt = self._read(status, content, self.price, detail)
        return attempt._replace(seconds=time.monotonic() - started, pause=pause_of(headers, time.time()))

    def _read(self, status: int, content: bytes, price: Price, detail: str = "") -> "Attempt":
        """What an HTTP response is worth."""
        if status == 200:
            return read_completion(content, price)
        said = detail or f"HTTP {status}: {_message(content)}"
        return Attempt(Reply(outcome_of(status, content), detail=self._scrubbed(said)), charge_of(status))

    async def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes, str]:
        """Status (0: there was no reply), headers, content, and what went wrong on the way."""
        import httpx2
        import openai

        self._server = self._server or self._connected()
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                response = await self._server.post("/chat/completions", body=body, cast_to=httpx2.Response)
                return response.status_code, response.headers, response.content, ""
        except openai.APIStatusError as error:
            return error.response.status_code, error.response.headers, error.response.content, ""
        except (TimeoutError, openai.APITimeoutError):
            return 0, {}, b"", f"no reply in {self.limits.timeout_s:g} s"
        except openai.APIConnectionError as error:
            return 0, {}, b"", f"connection lost: {error.__cause__ or error}"
        except (httpx2.HTTPError, OSError, ValueError) as error:
            return 0, {}, b"", f"{type(error).__name__}: {error}"

    def _connected(self) -> Any:
        """The openai client. No retries and no redirects: a redirect would post the prompts to another address."""
        import httpx2
        import openai

        transport = openai.DefaultAioHttpClient(
            timeout=httpx2.Timeout(self.limits.timeout_s, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=self._gate.most, max_keepalive_connections=self._gate.most),
            follow_redirects=False,
        )
        # A server on this machine needs no key, and the client insists on one.
        return openai.AsyncOpenAI(
            base_url=self.base_url, api_key=self._api_key or "none", max_retries=0, http_client=transport
        )

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


class Attempt(NamedTuple):
    """One HTTP request and what came of it."""

    reply: Reply
    charge: int | None = None
    """Nano-dollars, where the reply does not say; None: nobody knows."""
    pause: float = 0.0
    """Seconds that the server asked to wait; 0: it did not."""
    seconds: float = 0.0


NOT_SENT = Attempt(Reply(Outcome.NOT_SENT), charge=0)

FATAL_WORDS = {
    Outcome.NO_ACCESS: "the key is missing, wrong, or not allowed this; set the variable that `api_key_env` names",
    Outcome.NO_QUOTA: "the provider says that the account has no money left; top it up",
    Outcome.NO_SUCH: "no such model, or no such server; check `model` and `base_url`",
}


# ---- what a response means: pure functions


def outcome_of(status: int, content: bytes) -> Outcome:
    """The outcome of an HTTP response that is no answer; status 0: there was none."""
    code, message = _error(content)
    if status in (401, 403):
        return Outcome.NO_ACCESS
    if status == 402 or (status == 429 and "insufficient_quota" in code):
        return Outcome.NO_QUOTA
    if status == 429:
        return Outcome.RATE_LIMITED
    if status == 404 or 300 <= status < 400:
        return Outcome.NO_SUCH
    if status in (400, 413, 422):
        if "context_length" in code or "context length" in message or "context size" in message:
            return Outcome.TOO_LONG
        return Outcome.FILTERED if "content_filter" in code or "content_policy" in code else Outcome.REJECTED
    return Outcome.TRANSIENT


def charge_of(status: int) -> int | None:
    """Nano-dollars for a response without an answer. None where the model may have worked: nobody knows then."""
    return 0 if 300 <= status < 502 or status in (503, 529) else None


def read_completion(content: bytes, price: Price) -> Attempt:
    """The answer in a response with status 200, which is not always one."""
    try:
        told = json.loads(content)
        choice = told["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        if not (text is None or isinstance(text, str)):
            raise TypeError("content is no text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        detail = f"HTTP 200 without a chat completion ({type(error).__name__}: {error})"
        return Attempt(Reply(Outcome.MALFORMED, detail=detail))
    usage = told.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    finish = choice.get("finish_reason")
    outcome = Outcome.OK
    if refusal:
        outcome = Outcome.REFUSED
    elif finish == "content_filter":
        outcome = Outcome.FILTERED
    reply = Reply(
        outcome,
        text=refusal or text,
        finish=finish if isinstance(finish, str) else None,
        logprobs=_first_tokens(choice.get("logprobs")),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        cost=price.nano(tokens_in, tokens_out),
    )
    return Attempt(reply)


def _first_tokens(told: Any) -> list[tuple[str, float]] | None:
    """[token, log-probability in nats] of the likeliest first tokens of the answer; None: it came without."""
    try:
        return [(str(each["token"]), float(each["logprob"])) for each in told["content"][0]["top_logprobs"]]
    except (TypeError, KeyError, IndexError, ValueError):
        return None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _error(content: bytes) -> tuple[str, str]:
    """(code and type, message) of an error as the protocol has them, in lower case."""
    try:
        error = json.loads(content)["error"]
        return f"{error.get('code')} {error.get('type')}".lower(), str(error.get("message")).lower()
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", content[:500].decode("utf-8", "replace").lower()


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace")


def pause_of(headers: Mapping[str, str], now: float) -> float:
    """Seconds that a response asks to wait, 0 if it does not say, or says what cannot be.

    `retry-after-ms`, `retry-after` in seconds or as a date, then `x-ratelimit-reset-requests` and `-tokens`.

    Args:
        now: seconds since 1970.
    """
    told = headers.get("retry-after-ms")
    found = _number(told) / 1000 if told else 0.0
    if found <= 0 and (told := headers.get("retry-after")):
        found = _number(told) or _until(told, now)
    if found <= 0:
        resets = (headers.get(f"x-ratelimit-reset-{what}") for what in ("requests", "tokens"))
        found = max((_duration(reset) for reset in resets if reset), default=0.0)
    return found if math.isfinite(found) and found > 0 else 0.0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _until(text: str, now: float) -> float:
    try:
        return parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError):
        return 0.0


def _duration(text: str) -> float:
    """Seconds of `6m0s`, `1.5s`, `20ms` or a bare number; 0 for anything else."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * units[unit] for number, unit in parts)
    return _number(text)


DURATION = re.compile(r"([0-9.]+)(ms|s|m|h)")


def backoff(attempt: int) -> float:
    """Seconds before the next attempt: anything up to a ceiling that doubles, so that many clients do not march."""
    return random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_S * 2**attempt))


# ---- how fast


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
        self._heard_at = now()
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
            self._heard_at, self._in_a_row, self._pause, self._trying = self._now(), 0, 0.0, False
            return
        self._in_a_row += 1
        if self._trying:
            self._open(min(PROBE_MAX_S, 2 * self._pause))
        elif not self._pause and (self._in_a_row >= OUTAGE_AFTER or sum(self._recent) > self._recent_limit()):
            self._open(PROBE_S)

    def gave_up(self) -> bool:
        """True if nothing was heard for longer than the recipe will wait."""
        return bool(self._pause) and self._now() - self._heard_at > self.outage_s

    def _recent_limit(self) -> float:
        return 50 if len(self._recent) == self._recent.maxlen else math.inf

    def _open(self, pause: float) -> None:
        self._pause, self._try_at, self._trying = pause, self._now() + pause, False
        self._recent.clear()
