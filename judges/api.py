"""A model behind an OpenAI-compatible address: where it is, what it costs, and what it can do.

What an endpoint can do is found out by asking it once, with a harmless question, and remembered in the journal: some
refuse log-probabilities or schemas, some want `max_completion_tokens`, some allow no temperature. Those refusals come
with the first call and not with the ten-thousandth, and no pair is judged in another way than its neighbours. An
endpoint that refuses a real question all the same is asked once more: it may have been restarted with other options.

What is left out: the questions themselves (`judges.llm`, `judges.rating`), attempts and money (`judges.client`).
"""

import asyncio
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from judges.base import Cost, JudgeConfig, Session
from judges.batch import BatchClient, BatchConfig
from judges.client import Client, Limits
from judges.ledger import NANO, Ledger
from judges.replies import ANSWERS, FREE, Outcome, Price, Reply, Request
from pipeline.errors import JudgeError
from pipeline.records import Record, digest
from pipeline.store import Journal

KIND = "endpoint"
"""The kind of the journal's rows: what an endpoint can do."""

GENERATIONS = 100
"""Times that what an endpoint takes can be found out anew; the last one counts."""

TOP_LOGPROBS = 20
"""Likeliest tokens asked for: the most that the protocol allows."""

OWN = {
    "model": "`model`",
    "messages": "`prompt` and `rubric`",
    "n": "`samples`",
    "stream": "nothing: a reply is read as a whole",
    "max_tokens": "`max_tokens`",
    "max_completion_tokens": "`max_tokens`, which gets the name that the endpoint takes",
    "temperature": "`temperature`",
    "logprobs": "`mode`",
    "top_logprobs": "`mode`",
    "response_format": "`mode`",
}
"""Fields of a request that the judge fills, and reserves money by; and the option for each."""


class ApiConfig(JudgeConfig):
    """What every judge behind an API has in common."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"api_key_env", "allow_http", "price", "limits", "batch"})

    model: str
    """As the endpoint calls it."""
    base_url: str = "https://api.openai.com/v1"
    """The address up to and with its version: OpenAI, vLLM, llama.cpp, Ollama, a LiteLLM proxy."""
    api_key_env: str | None = None
    """The environment variable that holds the key. None: the endpoint needs none. Never the key itself."""
    allow_http: bool = False
    """Send prompts and key unencrypted to another machine. To this machine it is always allowed."""
    price: Price | Literal["free"]
    """What the endpoint charges: {input: 0.4, output: 1.6} in US dollars a million tokens, or `free`."""
    limits: Limits = Limits()
    """How hard the endpoint may be worked."""
    batch: BatchConfig | None = None
    """Ask through OpenAI's Batch API: half the price, within a day. None: at once."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the model's answers. Not sent to endpoints that refuse it."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of each request, for what one provider alone has: {reasoning_effort: low}."""

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        return address_of(value)

    @field_validator("extra_body")
    @classmethod
    def _more(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(OWN.keys() & value.keys()):
            raise ValueError(f"{name} is filled by the judge, and its budget relies on it; use {OWN[name]}")
        return value

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        check_encrypted(self.base_url, self.allow_http)
        return self

    @property
    def remote(self) -> bool:
        return True

    @property
    def window(self) -> int:
        return super().window if self.batch is None else self.batch.requests // 2  # each is asked about twice

    @property
    def prices(self) -> Price:
        """The price, zeros where it is free."""
        return FREE if self.price == "free" else self.price

    def cost_of(self, questions: Iterable[tuple[str, int, int]]) -> Cost:
        """What calls would cost.

        Args:
            questions: of each, its text, the tokens its reply usually has, and the most that it can have.
        """
        share = 1.0 if self.batch is None else self.batch.price_share
        found = Cost()
        for text, usual, most in questions:
            tokens_in = len(text) // 4 + 16
            usd = share * self.prices.nano(tokens_in, usual) / NANO
            ceiling = share * self.prices.nano(len(text.encode()) + 48, most) / NANO
            found = found.plus(Cost(1, tokens_in, usual, usd, ceiling))
        return found

    def lacks(self) -> Iterable[str]:
        return lacking_key(self.api_key_env)


class Features(Record):
    """What an endpoint takes. All of it, until it says otherwise."""

    logprobs: bool = True
    """Says how likely the first tokens were."""
    json_schema: bool = True
    """Keeps to a schema."""
    temperature: bool = True
    """Takes another temperature than its own."""
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name of the option that bounds the answer."""
    least: int = 1
    """The smallest bound that it takes."""


class Call(NamedTuple):
    """What an endpoint is asked."""

    messages: Sequence[Mapping[str, str]]
    max_out: int
    """Most tokens of the answer; more where the endpoint takes no smaller number."""
    logprobs: bool = False
    """Ask how likely the first tokens were."""
    json_schema: bool = False
    """Hold the answer to an object with a reason and a verdict that is one of `labels`."""
    labels: tuple[str, ...] = ()
    sample: int = 0
    """Number among several equal calls."""


class Endpoint:
    """One model at one address, for one judge, and what it was found to take."""

    def __init__(self, config: ApiConfig, session: Session) -> None:
        """Raises:
        JudgeError: the key is not in the environment.
        """
        for lacking in config.lacks():
            raise JudgeError(f"judge {config.name}: {lacking}")
        self.config = config
        ledger = Ledger(session.journal, session.run, session.step, config.name, session.budget_usd, session.making)
        key = os.environ[config.api_key_env] if config.api_key_env else None
        told = (config.base_url, key, config.limits, config.prices, ledger, session.processes)
        self.client = Client(*told) if config.batch is None else BatchClient(*told, batch=config.batch)
        self._journal = Journal(session.journal) if session.journal else None
        self._asked: list[Any] = []
        self._wanted = (False, False)
        self._learning = asyncio.Lock()
        self._learned_again = False
        self.features = Features()

    def find_out(
        self, max_out: int, *, logprobs: bool = False, json_schema: bool = False, afresh: bool = False
    ) -> Features:
        """Learn what the endpoint takes, at most one of the two at a time, from the journal or by asking it.

        Args:
            max_out: most tokens of an answer, as the questions that follow have it.
            afresh: ask it, whatever the journal says.

        Raises:
            JudgeError: it takes nothing that we can ask.
        """
        c = self.config
        self._wanted = (logprobs, json_schema)
        self._asked = [c.base_url, c.model, c.extra_body, c.temperature, *self._wanted, max_out]
        known = [] if afresh else self._remembered()
        if known:
            self.features = known[-1]
            return self.features
        (self.features,) = self.client.run([partial(self._try_out, Features() if afresh else self.features, max_out)])
        self._remember()
        return self.features

    def _remembered(self) -> list[Features]:
        """What the journal says of these options, generation by generation."""
        keys = self._keys()
        rows = self._journal.get_many(KIND, keys) if self._journal else {}
        return [Features.model_validate(rows[key]) for key in keys if key in rows]

    def _remember(self) -> None:
        known = self._remembered()
        if self._journal and len(known) < GENERATIONS and known[-1:] != [self.features]:
            self._journal.put_many(KIND, {self._keys()[len(known)]: self.features.model_dump(mode="json")})

    def _keys(self) -> list[str]:
        return [digest([*self._asked, generation]) for generation in range(GENERATIONS)]

    async def _try_out(self, features: Features, max_out: int) -> Features:
        """What of these features it takes, asked for all that the mode wants."""
        wanted = dict(zip(("logprobs", "json_schema"), self._wanted, strict=True))
        for _ in range(len(Features.model_fields) + 1):
            trial = {name: wish and getattr(features, name) for name, wish in wanted.items()}
            call = Call(TRIAL, max_out, labels=("K", "P"), **trial)
            reply = await self.client.directly(self._request(features, call))
            # That is the answer of a model that reasons first, and could not in so few tokens.
            if reply.outcome in ANSWERS or reply.outcome == Outcome.TOO_LONG:
                silent = trial["logprobs"] and reply.logprobs is None
                return features.model_copy(update={"logprobs": False}) if silent else features
            without = less(features, reply.detail, trial) if reply.outcome == Outcome.REJECTED else None
            if without is None:
                break
            features = without
        raise JudgeError(
            f"judge {self.config.name}: {self.config.base_url} does not answer even 'which letter is it?' "
            f"({reply.outcome.value}: {reply.detail}); check model and base_url"
        )

    async def complete(self, call: Call) -> Reply:
        """The answer to a question; see `judges.client.Client.complete`.

        Raises:
            JudgeError: it no longer takes what it took when it was tried out.
        """
        request = self._request(self.features, call)
        reply = await self.client.complete(request)
        if reply.outcome != Outcome.REJECTED:
            return reply
        await self._learn_again(call)
        again = self._request(self.features, call)
        return reply if again.body == request.body else await self.client.complete(again)

    async def _learn_again(self, call: Call) -> None:
        """Try out, once in this process, what the endpoint says of a question that it refused."""
        async with self._learning:
            if not self._learned_again:
                self._learned_again = True
                self.features = await self._try_out(Features(least=self.features.least), call.max_out)
                self._remember()
        for name in ("logprobs", "json_schema"):
            if getattr(call, name) and not getattr(self.features, name):
                raise JudgeError(
                    f"judge {self.config.name}: {self.config.base_url} no longer takes {name}, as it did; it may have "
                    "been restarted with other options. Restore them, or run the same command again: it is then asked "
                    "in the way that it takes now"
                )

    def _request(self, features: Features, call: Call) -> Request:
        """The body of a call, in the words that the endpoint takes."""
        max_out = max(call.max_out, features.least)
        body: dict[str, Any] = {"model": self.config.model, "messages": list(call.messages), features.limit: max_out}
        if features.temperature:
            body["temperature"] = self.config.temperature
        if call.logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if call.json_schema:
            body["response_format"] = {"type": "json_schema", "json_schema": schema_of(call.labels)}
        return Request({**body, **self.config.extra_body}, max_out, call.sample)


TRIAL = (
    {"role": "system", "content": "You name letters."},
    {"role": "user", "content": "Which letter comes before L in the alphabet, K or P? Say the letter alone."},
)
"""The harmless question."""


def schema_of(labels: tuple[str, ...]) -> dict[str, Any]:
    """An object with a reason before its verdict, so that the verdict can follow from it."""
    verdict = {"type": "string", "enum": list(labels)}
    return {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"reason": {"type": "string"}, "verdict": verdict},
            "required": ["reason", "verdict"],
            "additionalProperties": False,
        },
    }


LEAST = re.compile(r"(max_\w*tokens).*expected a value >= (\d{1,4})\b", re.DOTALL)
"""How an endpoint says that it takes no smaller bound. OpenAI: "Invalid 'max_output_tokens': integer below minimum
value. Expected a value >= 16, but got 1 instead"."""


def less(features: Features, complaint: str, tried: Mapping[str, bool]) -> Features | None:
    """The features without the one that the endpoint complained about; None if there is none to leave out.

    Args:
        complaint: the server's message.
        tried: what was asked for besides an answer.
    """
    said = complaint.lower()
    least = LEAST.search(said)
    if least and int(least[2]) > features.least:
        return features.model_copy(update={"least": int(least[2])})
    if features.limit == "max_tokens" and ("max_completion_tokens" in said or "max_tokens" in said):
        return features.model_copy(update={"limit": "max_completion_tokens"})
    words = {"logprobs": ("logprob",), "json_schema": ("response_format", "json_schema", "schema", "grammar")}
    for name, marks in words.items():
        if tried[name] and any(mark in said for mark in marks):
            return features.model_copy(update={name: False})
    if features.temperature and "temperature" in said:
        return features.model_copy(update={"temperature": False})
    # It did not say what it minds: leave out what we can do without, one after the other.
    left = next((name for name in ("logprobs", "json_schema") if tried[name]), None)
    left = left or ("temperature" if features.temperature else None)
    return features.model_copy(update={left: False}) if left else None


def address_of(value: str) -> str:
    """A server's address as a recipe has it, without a slash at its end.

    Raises:
        ValueError: it is none, or has a key in it.
    """
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{parts.scheme or value!r} is no address; write it as https://host/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("a key does not belong in an address, which is written out; use api_key_env")
    return value.rstrip("/")


def check_encrypted(base_url: str, allow_http: bool) -> None:
    """Raises:
    ValueError: what is sent there could be read on its way, and nobody allowed that.
    """
    parts = urlsplit(base_url)
    if parts.scheme == "http" and not allow_http and not _is_here(str(parts.hostname)):
        raise ValueError(f"base_url: http to {parts.hostname} is not encrypted; use https, or allow_http: true")


def lacking_key(variable: str | None) -> Iterator[str]:
    """What is missing where a key is looked for in this environment variable; None: no key is needed."""
    if variable is not None and not os.environ.get(variable):
        yield f"api_key_env: the environment variable {variable} is not set; it should hold the key"


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
