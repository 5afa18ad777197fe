"""The policy's answers from a vLLM server, which gets the policy's adapter before each update.

    start  GET  /v1/models              what is there, and how long a conversation it takes
           POST /v1/completions         one token, to see that token ids and log-probabilities come back
    update POST /v1/load_lora_adapter   the policy as it is now, under a new name
           POST /v1/unload_lora_adapter the one before
           POST /v1/completions         an answer a request: token ids in, token ids and log-probabilities out

An adapter's name ends in the update's number and the hash of its weights. So no other weights can answer in its name,
neither those of an earlier update nor what vLLM keeps of prompts that it has seen; an answer in another name is an
error, and loading one again changes nothing. A server that is away is asked again for a while, and one that was started
anew gets the adapter again.

Each request has a seed that is a function of the run's seed, the update and the answer's place: a run that was killed
asks for the same again. That it also gets the same cannot be promised: vLLM's numbers depend on its version and on what
else is in its batch, unless it is told otherwise (VLLM_BATCH_INVARIANT). What is learned is right all the same, because
log-probabilities come with the tokens, and their gap to the trainer's is measured and corrected.

What is left out: what is asked (`ppo_rollout.py`), a request and its reply (`ppo_completion.py`), and what becomes of
the gap (`ppo_trainer.py`, `ppo_guards.py`).
"""

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from judges.api import address_of, check_encrypted
from judges.replies import message_of
from pipeline import store
from pipeline.algorithms.ppo_completion import (
    Answered,
    Asked,
    Sampling,
    body_of,
    first_tokens,
    is_raw,
    read_answer,
)
from pipeline.errors import TrainingError
from pipeline.plugins import Config
from pipeline.records import digest

CONNECT_S = 5.0
"""Seconds to reach the server."""

ATTEMPTS = 5
"""Attempts at one request to a server that is there and fails (status 500, half a reply)."""

BACKOFF_S = 0.25
BACKOFF_MAX_S = 15.0

AWAY = frozenset({0, 408, 425, 429, 502, 503, 504})
"""Statuses of a server that is expected back; 0: there was no reply."""

RELOADS = 3
"""How often an adapter that the server took and does not know is given to it again."""

TRIAL = tuple(range(3, 11))
"""Token ids that every vocabulary has."""


class ServerConfig(Config):
    """Where the answers are sampled. Nothing here changes what is learned; that a server samples them does."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "allow_http", "adapter_dir", "timeout_s", "outage_s"}
    )

    base_url: str
    """The server's address up to and with /v1. It serves the recipe's base, under any name, and adapters on it."""
    api_key_env: str | None = None
    """The environment variable that holds the key. None: the server needs none. Never the key itself."""
    allow_http: bool = False
    """Send prompts and key unencrypted to another machine. To this machine it is always allowed."""
    adapter_dir: Path | None = None
    """A directory that the server sees under the same path; the adapters go there. None: the run's own, which is enough
    for a server on this machine."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for one answer."""
    outage_s: float = Field(default=300.0, gt=0)
    """Seconds for which a server that does not reply is asked again before the run stops. Where several processes share
    the step, launch.timeout_s has to be longer."""

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        return address_of(value)

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        check_encrypted(self.base_url, self.allow_http)
        return self


class ServerError(TrainingError):
    """The server cannot be used."""

    def __init__(self, where: str, what: str, remedy: str, *, away: bool = False) -> None:
        super().__init__(f"{where}: {what}; {remedy}")
        self.what, self.remedy = what, remedy
        self.away = away
        """It does not reply, and may do so later."""


class Reply(NamedTuple):
    """What came back from one request."""

    status: int
    content: Any
    """The JSON; None where it is none."""
    said: str
    """What went wrong, in the server's words."""


class Server:
    """The server, as one process of one train step knows it."""

    def __init__(self, config: ServerConfig, step: str, folder: Path, *, at_once: int = 1) -> None:
        """Args:
            step: the step's name, for messages and for the adapters' names.
            folder: for the adapters, if the recipe names none.
            at_once: answers that may be under way.

        Raises:
            ServerError: the key is not in the environment.
        """
        self.config = config
        self.where = f"{step}: rollouts"
        self.folder = (config.adapter_dir or folder).absolute()
        # By its own folder, so that another run at the same server is another, and this one resumed is the same.
        self.prefix = f"{step}-{digest(str(folder.absolute()))[:8]}-"
        self.at_once = at_once
        self.adapter: Path | None = None
        """The one that answers: its folder, which has its name."""
        self._key = os.environ.get(config.api_key_env, "") if config.api_key_env else None
        if self._key == "":
            raise ServerError(
                self.where, f"the environment variable {config.api_key_env} is not set", "it should hold the key"
            )
        self._transport: Any = None
        self._opening = threading.Lock()

    # ---- before anything loads

    def check(self, longest: int, temperature: float) -> None:
        """Ask once whether the server can do what will be asked of it.

        Args:
            longest: tokens of the longest conversation with its answer.

        Raises:
            ServerError: it is not there, or cannot.
        """
        base = self._base(longest)
        loads = self._attempt("POST", "/load_lora_adapter", {"lora_name": "", "lora_path": ""})
        if loads.status in (404, 405):
            raise self._error(
                "it takes no adapters while it runs",
                "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment, and with --enable-lora",
            )
        first = self._trial(base, temperature)
        if temperature != 1 and is_raw(self._trial(base, 1.0), first, temperature):
            raise self._error(
                f"its log-probabilities are those of temperature 1 and not of {temperature:g}",
                "start it with --logprobs-mode processed_logprobs",
            )

    def _base(self, longest: int) -> str:
        """The name of the base."""
        reply = self._attempt("GET", "/models")
        if reply.status in AWAY:
            raise self._error(f"no answer ({reply.said})", "start the server, or mend base_url", away=True)
        try:
            models = reply.content["data"]
            base = next(each for each in models if not each.get("parent"))
            name, room = str(base["id"]), base.get("max_model_len")
        except (TypeError, KeyError, AttributeError, StopIteration):
            raise self._error(
                f"there is no list of models at /models (HTTP {reply.status}: {reply.said})",
                "mend base_url, which ends in /v1, and api_key_env",
            ) from None
        if isinstance(room, int) and room < longest:
            raise self._error(
                f"it takes {room} tokens, and max_length is {longest}",
                f"start it with --max-model-len {longest}, or lower max_length",
            )
        return name

    def _trial(self, base: str, temperature: float) -> dict[str, float]:
        """The likeliest first tokens after a few ids, with their log-probabilities."""
        asked, sampling = Asked(TRIAL, 0), Sampling(temperature, 1, frozenset())
        reply = self._attempt("POST", "/completions", {**body_of(base, asked, sampling), "logprobs": 5})
        if reply.status != 200:
            raise self._error(f"it samples no token (HTTP {reply.status}: {reply.said})", "is it vLLM?")
        self._read(reply, base, asked, sampling)
        return first_tokens(reply.content)

    # ---- the policy's adapter

    def __enter__(self) -> Self:
        """Take back what a run of this step that was killed has left there."""
        reply = self._until_answered("GET", "/models")
        listed = reply.content.get("data", []) if isinstance(reply.content, dict) else []
        for name in [str(each.get("id")) for each in listed]:
            if name.startswith(self.prefix):
                self._attempt("POST", "/unload_lora_adapter", {"lora_name": name})
        for path in self.folder.glob(f"{self.prefix}*"):
            shutil.rmtree(path)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing there."""
        self._drop(self.adapter)
        self.adapter = None
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def name_of(self, update: int, weights: str) -> str:
        """The name of an adapter with these weights.

        Args:
            weights: their hash.
        """
        return f"{self.prefix}{update}-{weights[:16]}"

    def push(self, name: str, save: Callable[[Path], None]) -> None:
        """Let this adapter answer from now on, and take the one before away.

        Args:
            save: writes it as a PEFT folder.

        Raises:
            ServerError: the server does not take it.
        """
        target = self.folder / name
        if target == self.adapter:
            return
        store.remove(target)
        store.make_dirs(self.folder)
        save(target)
        self._load(target)
        before, self.adapter = self.adapter, target
        self._drop(before)

    def _load(self, adapter: Path) -> None:
        wanted = {"lora_name": adapter.name, "lora_path": str(adapter)}
        reply = self._until_answered("POST", "/load_lora_adapter", wanted)
        if reply.status == 200 or "already been loaded" in reply.said:  # by another process, or the reply was lost
            return
        remedy = "is it started with --enable-lora, and with --max-lora-rank no lower than lora.r?"
        if reply.status == 404:
            remedy = "name a directory in adapter_dir that the server sees under the same path"
        raise self._error(f"it does not load the adapter {adapter} (HTTP {reply.status}: {reply.said})", remedy)

    def _drop(self, adapter: Path | None) -> None:
        if adapter is not None:
            # Once, and whatever it says: an adapter that stays there takes room and answers nobody.
            self._attempt("POST", "/unload_lora_adapter", {"lora_name": adapter.name})
            store.remove(adapter)

    # ---- answers

    def answers(self, wanted: Sequence[Asked], sampling: Sampling) -> list[Answered]:
        """The adapter's answers, in order.

        Raises:
            ServerError: the server stays away, or gives something that cannot be learned from.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(max(1, min(self.at_once, len(wanted)))) as pool:
            futures = [pool.submit(self._answer, each, sampling, stop) for each in wanted]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = next((each for each in futures if each.done() and each.exception()), None)
                return [each.result() for each in ([failed] if failed else futures)]
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, asked: Asked, sampling: Sampling, stop: threading.Event) -> Answered:
        assert self.adapter is not None, "no adapter was pushed"
        name = self.adapter.name
        for _ in range(RELOADS):
            reply = self._until_answered("POST", "/completions", body_of(name, asked, sampling), stop)
            if reply.status == 200:
                return self._read(reply, name, asked, sampling)
            if reply.status != 404:
                raise self._error(f"it does not answer (HTTP {reply.status}: {reply.said})", "see the server's log")
            # It was started again, and has forgotten what it was given.
            self._load(self.adapter)
        raise self._error(
            f"it does not know the adapter {name}, which it has just loaded ({reply.said})",
            "is there one server at this address, and not several?",
        )

    def _read(self, reply: Reply, model: str, asked: Asked, sampling: Sampling) -> Answered:
        try:
            return read_answer(reply.content, model, asked, sampling)
        except ValueError as error:
            what, _, remedy = str(error).partition("; ")
            raise self._error(what, remedy) from None

    # ---- requests

    def _until_answered(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, stop: threading.Event | None = None
    ) -> Reply:
        """What the server says when it is there and well; waits for that as long as the recipe lets it."""
        stop = stop or threading.Event()
        failures, pause, deadline = 0, BACKOFF_S, math.inf
        while True:
            reply = self._attempt(method, path, body)
            failed = reply.status == 500 or (reply.status == 200 and reply.said != "")
            if not failed and reply.status not in AWAY:
                return reply
            failures += failed
            deadline = min(deadline, time.monotonic() + self.config.outage_s)
            if failures == ATTEMPTS or time.monotonic() + pause > deadline or stop.wait(pause):
                break
            pause = min(BACKOFF_MAX_S, 2 * pause)
        if failed:
            raise self._error(
                f"{path} fails, {failures} times (HTTP {reply.status}: {reply.said})",
                "see the server's log; the same command goes on where this one was",
            )
        raise self._error(
            f"no answer for {self.config.outage_s:g} s ({reply.said})",
            "run the same command again when the server is back",
            away=True,
        )

    def _attempt(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        import httpx2

        try:
            response = self._connected().request(method, f"{self.config.base_url}{path}", json=body)
        except (httpx2.HTTPError, OSError) as error:
            return Reply(0, None, self._scrubbed(f"{type(error).__name__}: {error}"))
        try:
            content = response.json()
        except ValueError:
            content = None
        said = "" if response.status_code == 200 else message_of(response.content)
        if response.status_code == 200 and content is None and path in ("/models", "/completions"):
            said = "the reply is no JSON"
        return Reply(response.status_code, content, self._scrubbed(said))

    def _connected(self) -> Any:
        import httpx2

        with self._opening:
            if self._transport is None:
                # No redirects: one would post the prompts to another address.
                self._transport = httpx2.Client(
                    timeout=httpx2.Timeout(self.config.timeout_s, connect=CONNECT_S),
                    limits=httpx2.Limits(max_connections=self.at_once + 1),
                    headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                    follow_redirects=False,
                )
            return self._transport

    def _error(self, what: str, remedy: str, *, away: bool = False) -> ServerError:
        return ServerError(self.where, f"{self.config.base_url}: {what}", remedy, away=away)

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text
