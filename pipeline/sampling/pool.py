"""Several servers that answer as one: work is shared over them, and one that fails is left out while others serve.

Each server has so many places; whoever has a free one takes the next piece of work. A piece that a server failed at
goes to whoever is free next. A server that fails is paused, a little longer each time, and after so many failures with
no answer in between it is left out for good, with a warning; when none is left, the work ends with all their reasons.

What is left out: what is asked (`chat.py`), and whatever of it is the sampler's (`openai.py`).
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from judges.replies import Outcome, message_of, outcome_of, pause_of
from pipeline.errors import ModelError

T = TypeVar("T")

CONNECT_S = 5.0
"""Seconds to reach a server."""

BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0


class Reply(NamedTuple):
    """What came back from one request."""

    status: int
    """0: nothing."""
    content: Any
    """The JSON; None where it is none."""
    outcome: Outcome
    said: str
    """What went wrong, in the server's words."""
    pause: float
    """Seconds that the server asked to wait, at most its timeout; 0: it did not."""


class Failed(Exception):
    """A server did not answer; others may."""

    def __init__(self, what: str, *, pause: float = 0.0, final: bool = False) -> None:
        super().__init__(what)
        self.pause = pause
        self.final = final
        """Asking it again is of no use."""


class Server:
    """One address, and how it has done so far."""

    def __init__(self, base_url: str, key: str | None, timeout_s: float, places: int) -> None:
        self.base_url = base_url
        self.timeout_s = timeout_s
        self.places = places
        self.out: str | None = None
        """Why it is left out. None: it is not."""
        self.failures = 0
        """With no answer in between."""
        self.failed_at = 0.0
        self.resume_at = 0.0
        self._key = key
        self._transport: Any = None

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """What it replies, whatever that is."""
        import httpx2

        content = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._connected().request(
                    method, f"{self.base_url}{path}", content=content, headers=headers
                )
        except TimeoutError:
            return Reply(0, None, Outcome.TRANSIENT, f"no reply in {self.timeout_s:g} s", 0.0)
        except (httpx2.HTTPError, OSError, ValueError) as error:
            return Reply(0, None, Outcome.TRANSIENT, self._scrubbed(f"{type(error).__name__}: {error}"), 0.0)
        pause = min(pause_of(response.headers, time.time()), self.timeout_s)  # who asks for a day is given up sooner
        if response.status_code != 200:
            said = self._scrubbed(f"HTTP {response.status_code}: {message_of(response.content)}")
            return Reply(response.status_code, None, outcome_of(response.status_code, response.content), said, pause)
        try:
            return Reply(200, json.loads(response.content), Outcome.OK, "", pause)
        except ValueError:
            return Reply(200, None, Outcome.MALFORMED, "HTTP 200, and the reply is no JSON", pause)

    def _connected(self) -> Any:
        import httpx2
        import openai

        if self._transport is None:
            # No redirects: one would post the prompts to another address.
            self._transport = openai.DefaultAioHttpClient(
                timeout=httpx2.Timeout(self.timeout_s, connect=CONNECT_S),
                limits=httpx2.Limits(max_connections=self.places + 1, max_keepalive_connections=self.places + 1),
                follow_redirects=False,
            )
        return self._transport

    async def close(self) -> None:
        """Let go of the connections; the next request opens new ones."""
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class Pool:
    """The servers of one process."""

    def __init__(self, servers: Sequence[Server], attempts: int, where: str) -> None:
        """Args:
        attempts: failures in a row after which a server is left out.
        where: what messages begin with.
        """
        self.servers = servers
        self.attempts = attempts
        self.where = where
        self._todo: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        self._done: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._tries: dict[int, int] = {}

    def each(
        self,
        count: int,
        work: Callable[[Server, int], Awaitable[T]],
        after: Callable[[Server], Awaitable[None]],
    ) -> Iterator[tuple[int, T]]:
        """The pieces of work 0 to `count` - 1 with their results, as they come.

        Args:
            work: does one at a server; raises `Failed` where another may do it.
            after: what is last asked of each server that has not failed.

        Raises:
            ModelError: no server is left.
        """
        with asyncio.Runner() as runner:
            try:
                runner.run(self._start(count, work))
                for _ in range(count):
                    found = runner.run(self._done.get())
                    if isinstance(found, BaseException):
                        raise found
                    yield found
            finally:
                runner.run(self._stop(after))

    async def _start(self, count: int, work: Callable[[Server, int], Awaitable[T]]) -> None:
        # Queues belong to the loop in which they are first waited for.
        self._todo, self._done, self._tries = asyncio.PriorityQueue(), asyncio.Queue(), {}
        for number in range(count):
            self._todo.put_nowait(number)
        ready = [server for server in self.servers if server.out is None]
        if count and not ready:
            raise self._none_left()
        # Or the first would take all of what is little.
        share = math.ceil(count / max(1, len(ready)))
        self._tasks = [
            asyncio.create_task(self._serve(server, work)) for server in ready for _ in range(min(server.places, share))
        ]

    async def _serve(self, server: Server, work: Callable[[Server, int], Awaitable[T]]) -> None:
        """One place at a server."""
        while server.out is None:
            if (pause := server.resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
                continue
            number = await self._todo.get()
            if server.out is not None or server.resume_at > time.monotonic():  # while it waited
                self._todo.put_nowait(number)
                await asyncio.sleep(0)
                continue
            sent = time.monotonic()
            try:
                result = await work(server, number)
            except Failed as failed:
                self._todo.put_nowait(number)
                self._heard_failure(server, failed, number, sent)
            except Exception as error:
                self._done.put_nowait(error)
                return
            else:
                server.failures = 0
                self._done.put_nowait((number, result))

    def _heard_failure(self, server: Server, failed: Failed, number: int, sent: float) -> None:
        self._tries[number] = self._tries.get(number, 0) + 1
        if self._tries[number] > self.attempts * len(self.servers):
            self._done.put_nowait(
                ModelError(
                    f"{self.where}: one request fails {self._tries[number]} times while others are answered, last at "
                    f"{server.base_url} ({failed}); see the servers' logs"
                )
            )
        # What was under way when it failed fails with it, and is the same failure.
        if server.out is not None or (sent < server.failed_at and not failed.final):
            return
        now = time.monotonic()
        server.failures, server.failed_at = server.failures + 1, now
        pause = failed.pause or min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (server.failures - 1))
        server.resume_at = now + pause
        if failed.final or server.failures >= self.attempts:
            self._leave_out(server, str(failed))

    def _leave_out(self, server: Server, why: str) -> None:
        server.out = why
        left = [each for each in self.servers if each.out is None]
        if not left:
            self._done.put_nowait(self._none_left())
            return
        print(
            f"{self.where}: {server.base_url} is left out ({why}); {len(left)} of {len(self.servers)} go on", flush=True
        )

    def _none_left(self) -> ModelError:
        reasons = "; ".join(f"{each.base_url}: {each.out}" for each in self.servers)
        return ModelError(
            f"{self.where}: no server is left ({reasons}); start one or mend base_urls, and run the same command "
            "again: what was answered is kept"
        )

    async def _stop(self, after: Callable[[Server], Awaitable[None]]) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await asyncio.gather(*(after(server) for server in self.servers if server.out is None))
        for server in self.servers:
            await server.close()
