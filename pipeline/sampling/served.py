"""One server as the sampler knows it: whether it has the model, takes adapters, and what its log-probabilities are of.

    first  GET  /v1/models              is the base there, and how long a conversation does it take
           POST /v1/chat/completions    where the distribution is cut or heated: are log-probabilities of the plain one
    policy POST /v1/load_lora_adapter   an adapter, under a name that ends in the hash of what is in it
    answer POST /v1/chat/completions
    KL     POST /v1/completions         the answer's tokens again under the base, for their log-probabilities
    last   POST /v1/unload_lora_adapter

An adapter is named by its content, so no other can answer in its name, and loading it twice changes nothing. A server
that was started anew gets it again. What is left out: which server is asked (`pool.py`), and for what (`openai.py`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from judges.replies import Outcome
from pipeline.errors import ModelError
from pipeline.records import Message
from pipeline.sampling.chat import (
    PLAIN,
    Answered,
    Sampling,
    body_of,
    read_answer,
    read_score,
    same_top,
    scoring_body,
)
from pipeline.sampling.pool import Failed, Reply, Server

TRIAL = (Message(role="user", content="Which letter comes before L in the alphabet?"),)
"""What is asked to see how a server answers."""

REFUSALS = frozenset({Outcome.REJECTED, Outcome.TOO_LONG, Outcome.FILTERED})
"""A request that no server of its kind takes, whatever the time."""

USELESS = frozenset({Outcome.NO_ACCESS, Outcome.NO_QUOTA, Outcome.NO_SUCH})
"""A server that answers nothing, whatever the time."""

RELOADS = 3
"""How often an adapter that the server took and does not know is given to it again."""


class Served:
    """The model at one server, with its adapters."""

    def __init__(self, server: Server, model: str, sampling: Sampling, extra: Mapping[str, Any]) -> None:
        self.server = server
        self.model = model
        self.sampling = sampling
        self.extra = extra
        self.room: int | None = None
        """Tokens that a conversation with its answer may have. None: the server does not say."""
        self.plain = True
        """Its log-probabilities are those of the distribution that is neither cut nor heated."""
        self.scores = True
        """It tells how likely given tokens are, as far as is known."""
        self._known = False
        self._loaded: set[str] = set()
        self._own: set[str] = set()
        self._lock = asyncio.Lock()

    async def begin(self) -> None:
        """Look once whether the model is there, and what its log-probabilities are of.

        Raises:
            Failed: it is not, or the server does not say.
        """
        async with self._lock:
            if self._known:
                return
            reply = _or_failed(await self.server.request("GET", "/models"))
            entry = _entry(reply.content, self.model)
            if entry is None:
                known = ", ".join(_names(reply.content)[:5]) or "none"
                raise Failed(f"it has no model {self.model!r}; those that it lists: {known}", final=True)
            self.room = _room(entry)
            if self.sampling != PLAIN:
                plain, own = [await self._first_tokens(each) for each in (PLAIN, self.sampling)]
                self.plain = same_top(plain, own)
            self._known = True

    async def _first_tokens(self, sampling: Sampling) -> dict[str, float]:
        body = {**body_of(self.model, TRIAL, sampling, 1, 1, self.extra), "top_logprobs": 5}
        return self._read(await self.server.request("POST", "/chat/completions", body), "the trial question").top

    async def ask(
        self, name: str, folder: Path | None, messages: Sequence[Message], tokens: int, seed: int, what: str
    ) -> Answered:
        """An answer of at most so many tokens, by the model of this name.

        Args:
            folder: of the adapter. None: the base is asked.
            what: the question, for messages.

        Raises:
            Failed: another server may answer.
            ModelError: none will.
        """
        body = body_of(name, messages, self.sampling, tokens, seed, self.extra)
        for _ in range(RELOADS):
            if folder is not None:
                await self._load(name, folder)
            reply = await self.server.request("POST", "/chat/completions", body)
            if folder is None or reply.outcome != Outcome.NO_SUCH:
                break
            # It was started again, and has forgotten what it was given.
            self._loaded.discard(name)
        answered = self._read(reply, what)
        by = reply.content.get("model")
        if folder is not None and by != name:
            raise Failed(f"{by!r} answered, and {name!r} was asked", final=True)
        return answered if self.plain else answered._replace(logprob=None)

    def _read(self, reply: Reply, what: str) -> Answered:
        if reply.outcome in REFUSALS:
            raise ModelError(
                f"{self.server.base_url}: it refuses {what} ({reply.said}); it has to be a server that takes top_k, "
                "min_p and repetition_penalty (vLLM, llama.cpp), with room for the prompt and max_new_tokens"
            )
        try:
            return read_answer(_or_failed(reply).content)
        except ValueError as error:
            raise Failed(str(error)) from None

    async def under_base(self, answered: Answered) -> float | None:
        """The log-probability of an answer under the base, nats. None: the server does not tell it."""
        if not self.scores or answered.ids is None or answered.n_tokens is None or answered.logprob is None:
            return None
        reply = await self.server.request("POST", "/completions", scoring_body(self.model, answered.ids))
        if reply.outcome not in (*REFUSALS, *USELESS):
            _or_failed(reply)
        found = read_score(reply.content, answered.ids, answered.n_tokens)
        self.scores = found is not None
        return found

    async def takes_adapters(self) -> bool:
        """Whether it loads any while it runs."""
        reply = await self.server.request("POST", "/load_lora_adapter", {"lora_name": "", "lora_path": ""})
        return reply.status not in (404, 405)

    async def _load(self, name: str, folder: Path) -> None:
        async with self._lock:
            if name in self._loaded:
                return
            wanted = {"lora_name": name, "lora_path": str(folder)}
            reply = await self.server.request("POST", "/load_lora_adapter", wanted)
            if "already been loaded" not in reply.said:  # by another process
                if reply.outcome in (*REFUSALS, *USELESS):
                    raise Failed(f"it does not load the adapter {folder} ({reply.said})", final=True)
                if reply.status != 200:
                    raise Failed(reply.said, pause=reply.pause)
                self._own.add(name)
            self._loaded.add(name)

    async def unload(self) -> None:
        """Take away the adapters that were loaded from here. Once, and whatever the server says."""
        for name in sorted(self._own):
            await self.server.request("POST", "/unload_lora_adapter", {"lora_name": name})
        self._own.clear()
        self._loaded.clear()
        self._lock = asyncio.Lock()  # which belongs to the loop that ends now


def _or_failed(reply: Reply) -> Reply:
    if reply.outcome != Outcome.OK:
        raise Failed(reply.said, pause=reply.pause, final=reply.outcome in USELESS)
    return reply


def _entries(content: Any) -> list[dict[str, Any]]:
    data = content.get("data") if isinstance(content, dict) else None
    return [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []


def _names(content: Any) -> list[str]:
    return [str(each.get("id")) for each in _entries(content)]


def _entry(content: Any, model: str) -> dict[str, Any] | None:
    """What the list of models says of this one, by its name or another that it has."""
    for each in _entries(content):
        aliases = each.get("aliases")
        if each.get("id") == model or (isinstance(aliases, list) and model in aliases):
            return each
    return None


def _room(entry: Mapping[str, Any]) -> int | None:
    """`max_model_len` of vLLM, or `n_ctx` of llama.cpp."""
    meta = entry.get("meta")
    told = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return told if type(told) is int and told > 0 else None
