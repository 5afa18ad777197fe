"""What came of a call to a server that speaks OpenAI's protocol. Pure functions.

An attempt ends in one of a closed set of outcomes, and what it cost is known or it is not. A response with status 200
is not always an answer, and one that is no answer is never made into one. What is left out: making calls
(`judges.client`) and what an answer says (`judges.verdicts`).
"""

import enum
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from pipeline.plugins import Config


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
    """The question does not fit the model's context, or the thoughts before an answer into the tokens allowed."""
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


RUN = re.compile(r"(.)\1{3,}", re.DOTALL)

CHARACTERS = 8
"""Of the question to a token that the server says it read, from which the server cannot have read it whole: texts have
fewer than 5."""


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

    def characters(self) -> int:
        """Of the question; a run of one character, of which a token can hold many, counts as one."""
        return sum(len(RUN.sub(r"\1", str(message["content"]))) for message in self.body["messages"])


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


class Attempt(NamedTuple):
    """One HTTP request and what came of it."""

    reply: Reply
    charge: int | None = None
    """Nano-dollars; None: nobody knows."""
    pause: float = 0.0
    """Seconds that the server asked to wait; 0: it did not."""
    seconds: float = 0.0


NOT_SENT = Attempt(Reply(Outcome.NOT_SENT), charge=0)


TOO_LONG = ("context length", "context size", "output limit was reached")
"""How servers say it."""


def outcome_of(status: int, content: bytes) -> Outcome:
    """The outcome of an HTTP response that is no answer; status 0: there was none."""
    code, message = _error(content)
    if status == 403:
        return _forbidden(content, message)
    if status == 401:
        return Outcome.NO_ACCESS
    if status == 402 or (status == 429 and "insufficient_quota" in code):
        return Outcome.NO_QUOTA
    if status == 429:
        return Outcome.RATE_LIMITED
    if status == 404 or 300 <= status < 400:
        return Outcome.NO_SUCH
    if status in (400, 413, 422):
        if "context_length" in code or any(words in message for words in TOO_LONG):
            return Outcome.TOO_LONG
        return Outcome.FILTERED if "content_filter" in code or "content_policy" in code else Outcome.REJECTED
    return Outcome.TRANSIENT


def _forbidden(content: bytes, message: str) -> Outcome:
    """What HTTP 403 is about: one option (OpenAI's GPT-5 and log-probabilities), one question (OpenRouter's
    moderation), or else the key."""
    if "logprob" in message:
        return Outcome.REJECTED
    try:
        metadata = _parsed(content)["error"]["metadata"]
        moderated = "flagged_input" in metadata or "reasons" in metadata
    except (ValueError, KeyError, TypeError):
        moderated = False
    # An account that was flagged is another matter.
    return Outcome.FILTERED if moderated or ("input" in message and "flagged" in message) else Outcome.NO_ACCESS


def charge_of(status: int) -> int | None:
    """Nano-dollars for a response without an answer. None where the model may have worked: nobody knows then."""
    return 0 if 300 <= status < 502 or status in (503, 529) else None


def read_completion(content: bytes, price: Price) -> Attempt:
    """The answer in a response with status 200, which is not always one."""
    try:
        told = _parsed(content)
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
    tokens_in, said_out, together = (_count(usage.get(f"{what}_tokens")) for what in ("prompt", "completion", "total"))
    # Some (xAI) count hidden reasoning in the total alone, and bill it as tokens of the answer.
    tokens_out = max(said_out, together - tokens_in)
    finish = choice.get("finish_reason")
    outcome = Outcome.OK
    if refusal:
        outcome = Outcome.REFUSED
    elif finish == "content_filter":
        outcome = Outcome.FILTERED
    said = refusal or text
    detail = "" if outcome != Outcome.OK else _broken(choice, text, usage)
    reply = Reply(
        Outcome.TRANSIENT if detail else outcome,
        text=None if said is None else _whole(str(said)),
        finish=_whole(finish) if isinstance(finish, str) else None,
        logprobs=_first_tokens(choice.get("logprobs")),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        cost=price.nano(tokens_in, tokens_out),
        detail=detail,
    )
    return Attempt(reply, charge=reply.cost if tokens_in and said_out else None)


def _broken(choice: Mapping[str, Any], text: str | None, usage: Mapping[str, Any]) -> str:
    """Why a chat completion is no answer, though it has the form of one; nothing if it is (OpenRouter's ways)."""
    error = choice.get("error")
    if error or choice.get("finish_reason") == "error":
        said = error.get("message") if isinstance(error, Mapping) else error
        return _whole(f"HTTP 200 with an error for an answer ({said or 'it does not say which'})")
    told = [usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens") if name in usage]
    return "HTTP 200 with no token read and none written" if not text and told and not any(told) else ""


def checked(request: Request, attempt: Attempt) -> Attempt:
    """The attempt; its answer is none where the server cut the question, which Ollama does in silence."""
    reply = attempt.reply
    if reply.outcome != Outcome.OK or not cut(request, reply):
        return attempt
    detail = (
        f"the server read {reply.tokens_in} tokens of a question of {request.characters()} characters, so it cut it; "
        "give it a longer context (Ollama: OLLAMA_CONTEXT_LENGTH=16384 ollama serve)"
    )
    return attempt._replace(reply=replace(reply, outcome=Outcome.TOO_LONG, detail=detail))


def cut(request: Request, reply: Reply) -> bool:
    """True if the server cannot have read the whole question; a count that it does not tell says nothing."""
    enough = CHARACTERS * reply.tokens_in
    return 0 < enough <= sum(len(str(each["content"])) for each in request.body["messages"]) and (
        enough <= request.characters()  # slower, and seldom needed
    )


def _first_tokens(told: Any) -> list[tuple[str, float]] | None:
    """[token, log-probability in nats] of the likeliest first tokens of the answer; None: it came without any.

    A probability of 0 (-Infinity) and one that is no number (NaN) say nothing and are left out, for no JSON text can
    keep them. Above 0 is a rounded 0.
    """
    try:
        listed = told["content"][0]["top_logprobs"]
        found = [(_whole(str(each["token"])), float(each["logprob"])) for each in listed]
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        return None
    return [(token, min(0.0, logprob)) for token, logprob in found if math.isfinite(logprob)] or None


def _parsed(content: bytes) -> Any:
    """The JSON value that a response consists of.

    Raises:
        ValueError: it is none, or one nested so deeply that it cannot be read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole(text: str) -> str:
    """The text with `?` for each half of a character, which a reply in JSON can have and neither a journal nor the
    next question can hold."""
    return text.encode("utf-8", "replace").decode()


def _count(value: Any) -> int:
    """A number of tokens that can be true, else 0: unknown. What is larger would not fit into the ledger either."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_TOKENS else 0


MOST_TOKENS = 10**9
"""More than any model reads or writes at a time."""


def _error(content: bytes) -> tuple[str, str]:
    """(code and type, message) of an error as the protocol has them, in lower case."""
    try:
        error = _parsed(content)["error"]
        return f"{error.get('code')} {error.get('type')}".lower(), str(error.get("message")).lower()
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", content[:500].decode("utf-8", "replace").lower()


def message_of(content: bytes) -> str:
    """The message of an error response, or its first characters."""
    try:
        return _whole(str(_parsed(content)["error"]["message"])[:200])
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
