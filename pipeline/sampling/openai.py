"""Answers from servers that speak OpenAI's protocol: one or several vLLM, or llama.cpp, with the policy's adapters.

    sampler:
      name: openai
      model: Qwen/Qwen2.5-7B-Instruct
      base_urls: [http://localhost:8000/v1, http://localhost:8001/v1]

Each answer is a request with a seed of its own, a function of the prompt, the batch and the answer's number. They are
kept under the model's name, the sampling options and the prompt, and not under the servers': a pool may grow, shrink
or move. That the same request gets the same answer twice is the servers' affair; vLLM's numbers depend on what else is
in its batch. A policy's adapter is given to each server before that answers for it (vLLM's /v1/load_lora_adapter), out
of the run directory, which the server has to see under the same path.

Whose log-probabilities are missing, or not of the plain distribution, gets none, and no KL is told of it. What is left
out: sharing the work (`pool.py`), what a server can (`served.py`), requests and replies (`chat.py`), and models of
their own in the place of the base, which a server would have to be started with.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from judges.api import address_of, check_encrypted, lacking_key
from pipeline.contents import content_of
from pipeline.errors import ModelError
from pipeline.findings import Finding
from pipeline.models import ModelConfig, home
from pipeline.plugins import one_or_many
from pipeline.records import Prompt, Response, seed_of
from pipeline.sampling.base import Batch, Question, Sampler, SamplerConfig
from pipeline.sampling.chat import OWN, PLAIN, Sampling
from pipeline.sampling.pool import Pool, Server
from pipeline.sampling.preflight import look_at
from pipeline.sampling.served import Served

BASE = "base"
"""The source that has no adapter."""

WHERE = "sampler openai"
"""What messages begin with."""


class Config(SamplerConfig):
    """How answers are sampled, by which servers."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset(
        {"base_urls", "api_key_env", "allow_http", "concurrency", "timeout_s", "attempts"}
    )
    REMOTE: ClassVar[bool] = True

    name: Literal["openai"] = "openai"
    model: str = Field(min_length=1)
    """The recipe's base, as the servers call it (their /v1/models lists it)."""
    base_urls: Annotated[tuple[str, ...], BeforeValidator(one_or_many), Field(min_length=1)]
    """The servers' addresses up to and with /v1, which share the work; a single one is enough."""
    api_key_env: str | None = None
    """The environment variable that holds the key of all servers. None: they need none. Never the key itself."""
    allow_http: bool = False
    """Send prompts and key unencrypted to another machine. To this machine it is always allowed."""
    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by it; 1 samples the policy itself, 0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus: only the likeliest tokens that together have this probability (Holtzman et al. 2020); 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """Only this many likeliest tokens; 0 keeps all."""
    max_new_tokens: int = Field(default=256, ge=1)
    """An answer that has not ended by then is cut and marked as not finished."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of each request: {chat_template_kwargs: {enable_thinking: false}}."""
    batch_size: int = Field(default=16, ge=1)
    """Answers that are kept together: a kill loses those of the batches under way."""
    concurrency: int = Field(default=32, ge=1)
    """Answers under way at each server, in each process."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for one answer."""
    attempts: int = Field(default=5, ge=1)
    """Failures of a server with no answer in between, after which it is left out."""

    @field_validator("base_urls")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(address_of(each) for each in value)
        twice = next((each for place, each in enumerate(found) if each in found[:place]), None)
        if twice:
            raise ValueError(f"{twice} is there twice; name each server once")
        return found

    @field_validator("extra_body")
    @classmethod
    def _more(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OWN & value.keys()):
            raise ValueError(f"{', '.join(taken)}: filled by the sampler; set its own option, or leave it out")
        return value

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        for each in self.base_urls:
            check_encrypted(each, self.allow_http)
        return self

    @property
    def sampling(self) -> Sampling:
        """How a token is drawn."""
        return Sampling(self.temperature, self.top_p, self.top_k)

    @property
    def plain(self) -> bool:
        return self.sampling == PLAIN

    def lacks(self) -> Iterator[str]:
        return lacking_key(self.api_key_env)

    def served(self) -> list[Served]:
        """The model at each of the servers.

        Raises:
            ModelError: the key is not in the environment.
        """
        for lacking in self.lacks():
            raise ModelError(f"{WHERE}: {lacking}")
        key = os.environ[self.api_key_env] if self.api_key_env else None
        servers = [Server(each, key, self.timeout_s, self.concurrency) for each in self.base_urls]
        return [Served(each, self.model, self.sampling, self.extra_body) for each in servers]

    def findings(self, question: Question) -> Iterator[Finding]:
        yield from look_at(self.served(), question, self.max_new_tokens)

    def build(self, model: ModelConfig, adapters: dict[str, Path], *, reference: bool) -> "OpenAISampler":
        """The sampler. No server is asked before the first answer is wanted.

        Args:
            reference: also ask for each answer's log-probability under the base (for the KL to it).
        """
        return OpenAISampler(self, adapters, reference=reference)


class Wanted(NamedTuple):
    """One answer that is asked for."""

    place: int
    """Of its batch among those asked."""
    source: str
    prompt: Prompt
    sample: int
    """Which of the answers to the prompt."""
    seed: int


class OpenAISampler(Sampler):
    """See `pipeline.sampling.base.Sampler`."""

    def __init__(self, config: Config, adapters: dict[str, Path], *, reference: bool) -> None:
        self.config = config
        self.reference = reference
        self.folders = {source: folder.absolute() for source, folder in adapters.items()}
        # By what is in it: another adapter of the same name is another model to the server.
        self.names = {
            source: f"{source}-{content_of(folder, home() / 'hashes')}" for source, folder in self.folders.items()
        }
        self._served = {each.server.base_url: each for each in config.served()}
        self._pool = Pool([each.server for each in self._served.values()], config.attempts, WHERE)

    def sample(self, batch: Batch, source: str) -> list[Response]:
        ((_, responses),) = self.sample_all([(batch, source)])
        return responses

    def sample_all(self, asked: Sequence[tuple[Batch, str]]) -> Iterator[tuple[int, list[Response]]]:
        wanted = list(_wanted(asked))
        for each in wanted:
            if each.source != BASE and each.source not in self.names:
                raise ModelError(
                    f"{WHERE}: there is no policy {each.source!r}; those there are: {', '.join(self.names)}"
                )

        async def answer(server: Server, number: int) -> Response:
            return await self._answer(self._served[server.base_url], wanted[number])

        async def leave(server: Server) -> None:
            await self._served[server.base_url].unload()

        came: dict[int, dict[int, Response]] = {}
        first = {each.place: number for number, each in reversed(list(enumerate(wanted)))}
        for number, response in self._pool.each(len(wanted), answer, leave):
            place = wanted[number].place
            batch, _ = asked[place]
            of_batch = came.setdefault(place, {})
            of_batch[number - first[place]] = response
            if len(of_batch) == len(batch.prompts) * batch.samples:
                yield place, [of_batch[each] for each in sorted(came.pop(place))]
        self._tell_what_is_missing()

    async def _answer(self, served: Served, wanted: Wanted) -> Response:
        await served.begin()
        folder = self.folders.get(wanted.source)
        name = self.names.get(wanted.source, self.config.model)
        what = f"the prompt {wanted.prompt.id}"
        answered = await served.ask(name, folder, wanted.prompt.messages, self.config.max_new_tokens, wanted.seed, what)
        under_base = None
        if self.reference:
            under_base = answered.logprob if folder is None else await served.under_base(answered)
        return Response(
            text=answered.text,
            source=wanted.source,
            index=wanted.sample,
            n_tokens=answered.n_tokens,
            finished=answered.finished,
            logprob=answered.logprob,
            ref_logprob=under_base,
        )

    def _tell_what_is_missing(self) -> None:
        if not self.reference:
            return
        for each in self._served.values():
            if not (each.plain and each.scores):
                what = "log-probabilities under the base" if each.plain else "log-probabilities at temperature 1"
                print(f"{WHERE}: {each.server.base_url} tells no {what}: no KL is told of its answers", flush=True)


def _wanted(asked: Iterable[tuple[Batch, str]]) -> Iterator[Wanted]:
    """Every answer of every batch, in order."""
    for place, (batch, source) in enumerate(asked):
        for prompt in batch.prompts:
            for sample in range(batch.samples):
                # 31 bits, because some servers take no more.
                yield Wanted(place, source, prompt, sample, seed_of(batch.seed, prompt.id, sample) >> 32)
