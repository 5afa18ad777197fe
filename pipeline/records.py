"""Prompt, Response, Pair, Verdict, Preference, Vote, Thumb: everything that touches disk between two stages.

Records are frozen and refuse unknown fields. On disk they are JSONL, one object a line, UTF-8 (`pipeline.store`).
Nothing time-like is in a record, so that the same recipe writes the same bytes; times are in each step's
`provenance.json`. What is left out: reading and writing files, and every decision about what a verdict is worth.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ABSTENTIONS = ("refused", "unreadable", "truncated", "filtered", "failed", "no_vote", "empty", "conflict")
"""Every reason a judge may give for not answering. A closed set, so that reports can count each."""


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN, UTF-8. What every hash is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def seed_of(*parts: object) -> int:
    """A 63-bit seed that is a function of its parts alone: never of arrival order, process or time."""
    return int.from_bytes(hashlib.sha256(canonical([str(part) for part in parts]).encode()).digest()[:8]) >> 1


Sample = Literal["control", "unsure"]
"""`control`: drawn at random. `unsure`: placed by what a judge said, so that it stands for no other pair."""


EXCHANGED = {"a": "b", "b": "a", "tie": "tie", "ab": "ba", "ba": "ab"}
"""What a choice between two answers, and the order in which they were shown, is called when they change sides."""


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ALIASES: ClassVar[Mapping[str, str]] = {}
    """What a row may have in the place of a field, and of which one."""


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """What the policy answers: a conversation that ends with the user's turn."""

    ALIASES: ClassVar[Mapping[str, str]] = {"prompt": "messages"}

    id: str
    """Unique in its file; samples, pairs and intervals are grouped by it."""
    kind: str = ""
    """The kind of task, for reports by kind."""
    lang: str = "en"
    messages: tuple[Message, ...] = Field(min_length=1)
    reference: str | None = None
    """A known good answer, shown to judges that ask for one."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        # `{"id": ..., "prompt": "text"}` is what most people have; it is one user turn.
        if isinstance(value, dict) and "prompt" in value and "messages" not in value:
            value = dict(value)
            value["messages"] = [{"role": "user", "content": value.pop("prompt")}]
        return value

    @model_validator(mode="after")
    def _ends_with_user(self) -> Self:
        if self.messages[-1].role != "user" or not self.messages[-1].content.strip():
            raise ValueError("the last message must be a user's and must not be empty")
        return self

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


class Response(Record):
    """One answer to a prompt and where it came from."""

    text: str
    source: str
    """Who wrote it: a checkpoint's name in this run (`base`, `dpo`), or a person's or file's name."""
    index: int = 0
    """Number of the sample among those of this source for this prompt."""
    n_tokens: int | None = None
    """Tokens sampled, the end-of-turn token included."""
    finished: bool | None = None
    """True: it ended by itself. False: it was cut at the token limit."""
    logprob: float | None = None
    """Sum over its tokens of log p under the source's policy, in nats, at temperature 1."""
    ref_logprob: float | None = None
    """The same under the base with every adapter off."""

    @property
    def key(self) -> tuple[str, int, str]:
        """What tells two responses to one prompt apart."""
        return (self.source, self.index, self.text)


class Pair(Record):
    """Two responses to one prompt. Make it with `Pair.of`: a hash decides which side is `a`, not the caller."""

    id: str
    prompt: Prompt
    a: Response
    b: Response

    @classmethod
    def of(cls, prompt: Prompt, one: Response, other: Response) -> "Pair":
        """The pair of two responses, the same whichever is given first."""
        low, high = sorted((one, other), key=lambda response: response.key)
        messages = [[message.role, message.content] for message in prompt.messages]
        identity = digest([prompt.id, messages, low.key, high.key])
        a, b = (low, high) if int(identity, 16) % 2 == 0 else (high, low)
        return cls(id=identity, prompt=prompt, a=a, b=b)

    def swap(self) -> "Pair":
        """The same pair with the sides exchanged. It keeps its id; `Verdict.swap` is its counterpart."""
        return self.model_copy(update={"a": self.b, "b": self.a})


class Verdict(Record):
    """What a judge said about one pair: a probability, or an abstention with its reason. Never a guess."""

    pair_id: str
    judge: str
    """The judge's name in the recipe, for people; `fingerprint` says exactly which."""
    fingerprint: str
    """Hash of everything about the judge that could change its answer."""
    p_a: float | None = Field(default=None, ge=0, le=1)
    """Probability that `a` is better; 0.5 is a tie. None: the judge abstained."""
    abstained: Literal[ABSTENTIONS] | None = None  # type: ignore[valid-type]
    """Why there is no `p_a`."""
    evidence: dict[str, Any] = Field(default_factory=dict)
    """What the probability was computed from: scores, logits, the raw reply."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0

    @model_validator(mode="after")
    def _answer_or_reason(self) -> Self:
        if (self.p_a is None) == (self.abstained is None):
            raise ValueError("a verdict has either p_a or abstained, and not both")
        return self

    def swap(self) -> "Verdict":
        """The verdict on `pair.swap()` that says the same."""
        return self if self.p_a is None else self.model_copy(update={"p_a": 1.0 - self.p_a})

    @property
    def is_tie(self) -> bool:
        """True for p_a of exactly 0.5: the judge answered, and saw no difference."""
        return self.p_a == 0.5


class Preference(Record):
    """A pair that was decided, as the losses see it."""

    pair_id: str
    prompt: Prompt
    chosen: Response
    rejected: Response
    confidence: float = Field(gt=0.5, le=1)
    """Probability that `chosen` is the better one."""


class Vote(Record):
    """What one person said about one pair. Sides are the pair's own; `shown` says which was on the left."""

    pair_id: str
    annotator: str
    """Who voted, as they are called in the file; never an address or a key of theirs."""
    choice: Literal["a", "b", "tie"]
    shown: Literal["ab", "ba"] | None = None
    """`ab`: a was the left or first one. None: not known."""
    strength: float | None = Field(default=None, ge=0)
    """How much better, on the scale of whoever asked."""
    sample: Sample | None = None
    """How the pair came to be asked about. None: not known."""
    note: str = ""
    at: str = ""
    """When, best in ISO 8601 with its zone; later votes of one person on one pair replace earlier ones."""

    def swap(self) -> "Vote":
        """The vote on `pair.swap()` that says the same."""
        shown = self.shown and EXCHANGED[self.shown]
        return self.model_copy(update={"choice": EXCHANGED[self.choice], "shown": shown})


class Thumb(Record):
    """One answer that people found good or bad by itself."""

    prompt: Prompt
    response: Response
    good: bool
    votes: int = Field(default=1, ge=1)
    """How many said so."""


__all__ = [
    "ABSTENTIONS", "EXCHANGED", "Message", "Pair", "Preference", "Prompt", "Record", "Response", "Sample", "Thumb",
    "Verdict", "Vote", "canonical", "digest", "seed_of",
]  # fmt: skip
