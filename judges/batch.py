"""The same questions through OpenAI's Batch API: half the price, an answer within a day.

The questions that wait for an answer at the same time go into one file; it is uploaded, a batch is made of it, and its
results are the answers. Questions that failed go into the next one. A process that is killed loses nothing: which
question is in which batch is in the ledger, and a batch whose number was not written down in time is found on the
server by its name. The name is in the ledger before the batch is made, and no two batches ever have the same.

What is left out: endpoints other than chat completions, and limits of the provider on batches under way.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from judges.client import Client
from judges.pacing import backoff
from judges.replies import AGAIN, NOT_SENT, Attempt, Price, Reply, Request
from pipeline.errors import JudgeError
from pipeline.plugins import Config

T = TypeVar("T")

GATHER_S = 0.25
"""Seconds without a new question after which those that wait are put into a batch."""

NAME = "prefloop"
"""The key of a batch's metadata under which its name is, and what each name begins with: no number of a server does."""

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

ROUNDS = 4
"""Batches that a question can be in before its pair is left open."""


class BatchConfig(Config):
    """OpenAI's Batch API."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"poll_s", "requests", "price_share"})

    poll_s: float = Field(default=30.0, gt=0)
    """Seconds between two looks at an unfinished batch."""
    requests: int = Field(default=20_000, ge=2, le=50_000)
    """Most requests in one batch; the protocol allows 50,000."""
    price_share: float = Field(default=0.5, gt=0, le=1)
    """What a batch costs, as a share of `price`."""


class Waiting:
    """A question without its answer."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.round = 0


class Making:
    """A batch that is being made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open_ends = 0
        """Requests to make it of which nobody knows what became: it may be there, and cost something."""


class Refused(JudgeError):
    """The provider said no to a request about batches or files, so that this request did nothing."""


class BatchClient(Client):
    """See `judges.client.Client`."""

    def __init__(self, *told: Any, batch: BatchConfig) -> None:
        super().__init__(*told)
        self.batch = batch
        share = batch.price_share
        self.batch_price = Price(input=self.price.input * share, output=self.price.output * share)
        self._waiting: dict[str, Waiting] = {}
        self._collector: asyncio.Task[None] | None = None

    def _at_once(self, work: int) -> int:
        return work  # all of them have to wait together, or a batch would be small

    async def _until_answered(self, key: str, request: Request) -> Reply:
        waiting = self._waiting[key] = Waiting(request)
        if self._collector is None or self._collector.done():
            self._collector = asyncio.create_task(self._collect())
        return await waiting.answer

    async def _collect(self) -> None:
        """Answer what waits, batch after batch, until nothing does."""
        try:
            while self._waiting:
                await self._gathered()
                keys = sorted(self._waiting)[: self.batch.requests]
                await self._answer({key: self._waiting[key] for key in keys})
        except Exception as error:
            for waiting in self._waiting.values():
                waiting.answer.set_exception(error)
            self._waiting.clear()

    async def _gathered(self) -> None:
        """Return when no question has come for a while."""
        seen = -1
        while seen != len(self._waiting):
            seen = len(self._waiting)
            await asyncio.sleep(GATHER_S)

    async def _answer(self, asked: dict[str, Waiting]) -> None:
        """One round for these questions: those in earlier batches get their results, the others get a new batch."""
        known = self.ledger.under_way(list(asked))
        earlier: dict[str, list[str]] = {}
        for key, (_, _, batch) in known.items():
            if batch is not None:
                earlier.setdefault(batch, []).append(key)
        fresh = dict(asked)
        for batch, keys in earlier.items():
            number = await self._number_of(batch)
            if number is not None:
                await self._settle_batch(number, {key: fresh.pop(key) for key in keys}, known)
        if fresh:
            calls = await self._reserve_all(fresh, known)
            questions = {key: fresh[key] for key in calls}
            ids = {key: call for key, (call, _, _) in calls.items()}
            making = Making(f"{NAME}:{secrets.token_hex(16)}")
            # Before it is made, so that whoever comes after a kill finds it.
            await self.ledger.put_in_batch(ids, making.name)
            try:
                number = await self._patiently(lambda: self._found_or_made(questions, making))
            except Refused:
                if not making.open_ends:
                    await self._give_back({key: each for key, each in calls.items() if key not in known})
                raise
            await self.ledger.put_in_batch(ids, number)
            await self._settle_batch(number, questions, calls)

    async def _give_back(self, calls: Mapping[str, tuple[int, int, str | None]]) -> None:
        """Charge nothing for these calls, of which it is sure that no model was asked.

        That is not sure of a killed process's calls: its request for a batch may still be under way.
        """
        for key, (call, reserve, _) in calls.items():
            self._under_way += 1
            await self._settle(call, key, reserve, NOT_SENT)

    async def _reserve_all(
        self, fresh: Mapping[str, Waiting], known: Mapping[str, tuple[int, int, str | None]]
    ) -> dict[str, tuple[int, int, str | None]]:
        """(call, reserve, None) of each question, as many as the budget has room for.

        What a killed process had reserved for the same question is taken over and not reserved again.

        Raises:
            BudgetError: there is room for none.
        """
        found: dict[str, tuple[int, int, str | None]] = {}
        for key, waiting in fresh.items():
            if key in known:
                found[key] = known[key]
                continue
            reserve = self._most(waiting.request, self.batch_price)
            call = await self.ledger.reserve(key, waiting.round, reserve)
            if call is None:
                if not found:
                    raise self._stop(self._no_money(reserve))
                break  # those that have room go first
            found[key] = (call, reserve, None)
        return found

    async def _number_of(self, batch: str) -> str | None:
        """The number of a batch in the ledger; None: it has a name there, and was never made."""
        return await self._patiently(lambda: self._find(batch)) if _is_name(batch) else batch

    async def _found_or_made(self, questions: Mapping[str, Waiting], making: Making) -> str:
        """The number of the batch of this name. A new one, unless an attempt whose reply was lost has made it."""
        found = await self._find(making.name)
        if found is not None:
            return found
        # A file costs nothing, whatever becomes of it; a batch does.
        file = await self._server.files.create(file=("questions.jsonl", _lines(questions)), purpose="batch")
        return await self._made(file.id, making)

    async def _made(self, file: str, making: Making) -> str:
        """The number of a new batch of the questions in this file."""
        import openai

        making.open_ends += 1
        try:
            made = await self._server.batches.create(
                input_file_id=file,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={NAME: making.name},
            )
        except openai.APIStatusError as error:
            making.open_ends -= _is_refusal(error.status_code)
            raise
        return str(made.id)

    async def _find(self, name: str) -> str | None:
        """The number of the batch of this name; None: there is none."""
        server = self._server = self._server or self._connected()
        async for batch in server.batches.list(limit=100):
            if (batch.metadata or {}).get(NAME) == name:
                return str(batch.id)
        return None

    async def _settle_batch(
        self, number: str, asked: Mapping[str, Waiting], calls: Mapping[str, tuple[int, int, str | None]]
    ) -> None:
        """Wait for a batch and hand out its results; what it did not answer waits on, for the next.

        Raises:
            JudgeError: the provider would not begin it. It would not begin the next one either.
        """
        results, failure = await self._results(number)
        for key, waiting in asked.items():
            status, content = results.get(key, (0, b""))
            said = "" if status else "the batch did not answer it"
            attempt = self._read(waiting.request, status, content, self.batch_price, said)
            call, reserve, _ = calls[key]
            if not failure:
                self._learn(attempt)
            self._under_way += 1
            await self._settle(call, key, reserve, attempt if status else Attempt(attempt.reply, charge=0))
            if failure:
                continue
            waiting.round += 1
            if attempt.reply.outcome not in AGAIN or waiting.round >= ROUNDS:
                del self._waiting[key]
                waiting.answer.set_result(attempt.reply)
        if failure:
            raise JudgeError(
                f"{self.base_url}: the provider began nothing of batch {number} ({self._scrubbed(failure)}); mend "
                "that (where it is a limit on what waits: a smaller batch.requests), or ask without `batch`"
            )

    async def _results(self, number: str) -> tuple[dict[str, tuple[int, bytes]], str]:
        """(status, body) by question, when the batch has ended; and why it failed as a whole, or nothing."""
        server = self._server = self._server or self._connected()
        while (batch := await self._patiently(lambda: server.batches.retrieve(number))).status not in ENDED:
            await self._sleep(self.batch.poll_s)
        found: dict[str, tuple[int, bytes]] = {}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._patiently(lambda file=file: server.files.content(file))  # type: ignore[misc]
            for line in content.content.splitlines():
                row = json.loads(line)
                response = row.get("response") or {"status_code": 500, "body": {"error": row.get("error")}}
                found[row["custom_id"]] = (response["status_code"], json.dumps(response["body"]).encode())
        return found, _failure(batch) if batch.status == "failed" else ""

    async def _patiently(self, what: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of a request about batches or files, tried again while the server has trouble.

        Raises:
            Refused: the server says no.
            JudgeError: it has had trouble for too long.
        """
        import openai

        for attempt in range(self.limits.attempts):
            try:
                return await what()
            except openai.APIStatusError as error:
                if _is_refusal(error.status_code):
                    raise Refused(
                        f"{self.base_url}: the Batch API refuses ({self._scrubbed(str(error))}); without `batch` the "
                        "same questions are asked one by one"
                    ) from None
                trouble: Exception = error
            except (openai.APIConnectionError, TimeoutError) as error:
                trouble = error
            await self._sleep(backoff(attempt + 2))
        raise JudgeError(f"{self.base_url}: the Batch API does not answer ({self._scrubbed(str(trouble))})")


def _is_refusal(status: int) -> bool:
    """True for a response that asking again does not change, and that says that nothing was done."""
    return status not in (408, 409, 429) and status < 500


def _is_name(batch: str) -> bool:
    """True for what the ledger has of a batch whose number was not written down."""
    return batch.startswith(f"{NAME}:")


def _failure(batch: Any) -> str:
    """What the provider says of a batch that failed, its first three errors."""
    errors = (batch.errors.data if batch.errors else None) or []
    told = [f"{error.message or error.code}" + (f" in line {error.line}" if error.line else "") for error in errors]
    return "; ".join(told[:3]) or "it does not say why"


def _lines(questions: Mapping[str, Waiting]) -> bytes:
    rows = (
        {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": waiting.request.body}
        for key, waiting in questions.items()
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
