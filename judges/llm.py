"""Shows a language model both answers and reads how probable each of two labels is as its next token.

No text is generated, so there is no reply to parse and nothing that an answer can make the model write. The labels
are single tokens that suggest no order; which of them goes to the answer shown first is drawn from the pair's id. The
template and the rubric are files of `judges/prompts`, in the prompt's language, else in English. What the pair brings
in is data: control characters go, and whatever could close its block or pass for a chat turn is broken up.

The model prefers a place and a label whatever stands there (`order_free` is False); `both_orders` removes that.

What is left out: reasoning before the verdict, ties as a third label, reference answers, and models behind an API: a
second `Backend` beside LocalModel. Nothing else here knows where log-probabilities come from.
"""

import glob
import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from pydantic import Field, field_validator

from judges.base import JudgeConfig, sigmoid
from pipeline.errors import JudgeError
from pipeline.models import ModelConfig
from pipeline.records import Message, Pair, Verdict, digest

T = TypeVar("T")

PROMPTS = Path(__file__).parent / "prompts"

PLACEHOLDERS = frozenset({"rubric", "tag", "question", "answer_1", "answer_2", "label_1", "label_2"})
"""What a template must hold, each at least once, and nothing else in double braces."""


class Config(JudgeConfig):
    RUNTIME: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    name: Literal["llm"] = "llm"
    model: ModelConfig = ModelConfig(quantization="none")
    """The model that judges. It needs a chat template."""
    prompt: str = "pairwise"
    """Template: `pairwise` is judges/prompts/pairwise.<lang>.txt; a path ending in .txt serves every language."""
    rubric: str = "helpful"
    """What counts: `helpful` is judges/prompts/rubric.helpful.<lang>.txt; or a path ending in .txt."""
    labels: tuple[tuple[str, str], ...] = Field(default=(("K", "P"), ("M", "R"), ("H", "T"), ("Q", "W")), min_length=1)
    """Names for the two answers, the first two of them that are one token each. Letters that suggest no order."""
    min_label_mass: float = Field(default=0.5, ge=0, le=1)
    """Least probability of the two labels together. Below it the model was about to say something else, and the
    verdict is an abstention (`unreadable`)."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Tokens in one forward pass, padding included. Lower it where memory is short."""

    @property
    def order_free(self) -> bool:
        return False

    @field_validator("prompt")
    @classmethod
    def _template_is_whole(cls, value: str) -> str:
        for text in read_texts(value).values():
            Template.parse(text)
        return value

    @field_validator("rubric")
    @classmethod
    def _rubric_is_there(cls, value: str) -> str:
        read_texts(value, prefix="rubric.")
        return value

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, value: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for first, second in value:
            if not first.strip() or not second.strip() or first.strip().lower() == second.strip().lower():
                raise ValueError(f"labels {first!r} and {second!r}: both must be words, and differ by more than case")
        return value

    def identity(self) -> dict[str, Any]:
        # The texts and not the names: an edited template is another judge, a renamed one is not.
        texts = {"prompt": digest(read_texts(self.prompt)), "rubric": digest(read_texts(self.rubric, prefix="rubric."))}
        return {**super().identity(), **texts}

    def build(self) -> "LlmJudge":
        return LlmJudge(self, LocalModel.load(self))


class Question(NamedTuple):
    """One rendered call: the two turns that the model reads."""

    prompt_id: str
    pair_id: str
    system: str
    user: str


class Reading(NamedTuple):
    """What a backend says to one question: two log-probabilities in nats, or why there are none."""

    logprobs: tuple[float, float] | None = None
    """Of `Backend.labels`, spellings of a label summed."""
    abstained: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


class Backend(Protocol):
    """Who gives label log-probabilities for a rendered question."""

    labels: tuple[str, str]
    special_tokens: tuple[str, ...]
    """Texts that would be read as control tokens; they are broken up in data."""

    def read(self, questions: Sequence[Question]) -> list[Reading]:
        """One reading per question, in order."""
        ...


class LlmJudge:
    def __init__(self, config: Config, backend: Backend) -> None:
        self.config = config
        self.fingerprint = config.fingerprint()
        self.backend = backend
        self.templates = {lang: Template.parse(text) for lang, text in read_texts(config.prompt).items()}
        self.rubrics = read_texts(config.rubric, prefix="rubric.")

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        readings = self.backend.read([self.question(pair) for pair in pairs])
        return [self._verdict(pair, reading) for pair, reading in zip(pairs, readings, strict=True)]

    def question(self, pair: Pair) -> Question:
        """What the model is shown about this pair, the answer `a` first."""
        lang = pair.prompt.lang.lower().split("-")[0]
        template = in_language(self.templates, lang)
        label_1, label_2 = self._labels(pair)
        data = {"question": conversation(pair.prompt.messages), "answer_1": pair.a.text, "answer_2": pair.b.text}
        values = {name: neutralise(text, self.backend.special_tokens, template.tags) for name, text in data.items()}
        values |= {"rubric": in_language(self.rubrics, lang).strip(), "label_1": label_1, "label_2": label_2}
        values["tag"] = digest(["tag", pair.id], length=8)
        return Question(pair.prompt.id, pair.id, fill(template.system, values), fill(template.user, values))

    def _labels(self, pair: Pair) -> tuple[str, str]:
        """The labels of the answers shown first and second.

        A function of the pair's id, which exchanging the sides keeps: so a liking for one label is part of the bias
        that `both_orders` cancels, and over many pairs it has no side.
        """
        first, second = self.backend.labels
        return (first, second) if int(digest(["labels", pair.id]), 16) % 2 == 0 else (second, first)

    def _verdict(self, pair: Pair, reading: Reading) -> Verdict:
        labels, p_a, abstained = self._labels(pair), None, reading.abstained
        evidence: dict[str, Any] = {"labels": list(labels)}
        if reading.logprobs is not None:
            by_label = dict(zip(self.backend.labels, reading.logprobs, strict=True))
            logit_a, logit_b = (by_label[label] for label in labels)
            mass = math.exp(logit_a) + math.exp(logit_b)
            evidence |= {"logits": [logit_a, logit_b], "label_mass": mass}
            if mass < self.config.min_label_mass:
                abstained = "unreadable"
            else:
                p_a = sigmoid(logit_a - logit_b)
        return Verdict(
            pair_id=pair.id,
            judge=self.config.name,
            fingerprint=self.fingerprint,
            p_a=p_a,
            abstained=abstained,
            evidence=evidence,
            tokens_in=reading.tokens_in,
            tokens_out=reading.tokens_out,
            cost_usd=reading.cost_usd,
        )


# --- Rendering: templates, rubrics, and data that must stay data ---


class Template(NamedTuple):
    """The two turns of a prompt file, with placeholders."""

    system: str
    user: str
    tags: tuple[str, ...]
    """Words that open a block of data (`<answer ...`), to be broken up where data holds them."""

    @classmethod
    def parse(cls, text: str) -> "Template":
        """A file's text: comment lines, then `[system]` and `[user]` on lines of their own.

        Raises:
            ValueError: a part or a placeholder is missing, or a placeholder is unknown.
        """
        match = re.search(r"^\[system\]\n(?P<system>.*?)^\[user\]\n(?P<user>.*)\Z", text, re.DOTALL | re.MULTILINE)
        if match is None:
            raise ValueError("a prompt file needs a line [system] and after it a line [user]")
        system, user = match["system"].strip(), match["user"].strip()
        found = set(re.findall(r"\{\{(\w*)\}\}", system + user))
        if found != PLACEHOLDERS:
            missing, unknown = sorted(PLACEHOLDERS - found), sorted(found - PLACEHOLDERS)
            raise ValueError(f"placeholders of a prompt file: missing {missing}, unknown {unknown}")
        return cls(system, user, tuple(sorted(set(re.findall(r"</?(\w+)[^<>]*\{\{tag\}\}", user)))))


def fill(text: str, values: dict[str, str]) -> str:
    """The text with its placeholders replaced in one pass, so that a value that holds a placeholder stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], text)


def read_texts(name: str, prefix: str = "") -> dict[str, str]:
    """The texts called `name` by language: all of judges/prompts/<prefix><name>.<lang>.txt, or one file for all ('').

    Raises:
        ValueError: there is no such text, or none in English.
    """
    if name.endswith(".txt"):
        if not Path(name).is_file():
            raise ValueError(f"no file {name}")
        return {"": Path(name).read_text(encoding="utf-8")}
    found = sorted(PROMPTS.glob(f"{glob.escape(prefix + name)}.*.txt"))
    texts = {path.name.split(".")[-2]: path.read_text(encoding="utf-8") for path in found}
    if "en" not in texts:
        known = sorted(path.name[len(prefix) : -len(".en.txt")] for path in PROMPTS.glob(f"{prefix}*.en.txt"))
        raise ValueError(f"no text {name!r} in judges/prompts; there are {', '.join(known)}, or a path ending in .txt")
    return texts


def in_language(texts: dict[str, T], lang: str) -> T:
    """The text in this language, else the English one, else the one that serves every language."""
    return next(texts[key] for key in (lang, "en", "") if key in texts)


def conversation(messages: Sequence[Message]) -> str:
    """The request as the judge reads it: its text, or a JSON list of roles and contents where there are more turns."""
    if len(messages) == 1:
        return messages[0].content
    return json.dumps([message.model_dump() for message in messages], ensure_ascii=False)


INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]")
"""Zero-width, bidirectional and tag characters: a person does not see them and a model reads them."""

TURN_MARKERS = r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|</?(?:start|end)_of_turn>"
"""Chat templates in use, for a model whose tokenizer is not at hand."""


def neutralise(text: str, special_tokens: Iterable[str], tags: Iterable[str]) -> str:
    """Data that cannot leave its block: no invisible characters, no control tokens, no tags of the template.

    A forbidden piece gets a space after its first character: a reader sees what was there, the tokenizer does not.
    Invisible characters go first, for they could hide such a piece.
    """
    forbidden = [re.escape(token) for token in sorted(special_tokens, key=len, reverse=True) if len(token) > 1]
    forbidden += [TURN_MARKERS, *(rf"</?{re.escape(tag)}\b" for tag in tags)]
    return re.sub("|".join(forbidden), lambda m: f"{m[0][0]} {m[0][1:]}", INVISIBLE.sub("", text), flags=re.IGNORECASE)


# --- A model in this process ---


class LocalModel:
    """Reads the labels off the logits of a transformers model, both orders of a pair in one batch."""

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[tuple[str, str]], batch_tokens: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.labels, self.label_ids = choose_labels(tokenizer, labels)
        added = tokenizer.added_tokens_decoder.values()
        self.special_tokens = tuple(sorted({str(token) for token in added if token.special}))
        self.takes_system = takes_system(tokenizer)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.positions = min(limit or math.inf, tokenizer.model_max_length)
        """Tokens that the model can place. What is longer is not read, and never cut."""

    @classmethod
    def load(cls, config: Config) -> "LocalModel":
        """The judge's model, loaded.

        Raises:
            ModelError: it cannot be loaded, or has no chat template.
            JudgeError: none of the labels is one token of it.
        """
        from pipeline.models import load_model, load_tokenizer

        tokenizer = load_tokenizer(config.model)
        choose_labels(tokenizer, config.labels)  # before the weights, which take longer
        return cls(load_model(config.model), tokenizer, config.labels, config.batch_tokens)

    def read(self, questions: Sequence[Question]) -> list[Reading]:
        tokens = [self._encode(question) for question in questions]
        readings = [Reading(abstained="truncated")] * len(questions)
        fits = [i for i, ids in enumerate(tokens) if len(ids) <= self.positions]
        for batch in batches(fits, questions, tokens, self.batch_tokens):
            for i, logprobs in zip(batch, self._logprobs([tokens[i] for i in batch]), strict=True):
                readings[i] = Reading(logprobs, tokens_in=len(tokens[i]))
        return readings

    def _encode(self, question: Question) -> list[int]:
        from pipeline.models import chat_ids

        system, user = Message(role="system", content=question.system), Message(role="user", content=question.user)
        if self.takes_system:
            return chat_ids(self.tokenizer, [system, user])
        return chat_ids(self.tokenizer, [Message(role="user", content=f"{question.system}\n\n{question.user}")])

    def _logprobs(self, batch: Sequence[list[int]]) -> list[tuple[float, float]]:
        """Log-probability in nats of each label as the next token, its spellings summed."""
        import torch

        with torch.inference_mode():
            logits_BV = self.model(**self._padded(batch)).logits[:, -1].float()
            logp_BV = logits_BV.log_softmax(-1)
            first, second = (torch.logsumexp(logp_BV[:, ids], -1).tolist() for ids in self.label_ids)
        return list(zip(first, second, strict=True))

    def _padded(self, batch: Sequence[list[int]]) -> dict[str, Any]:
        """Left padding, so that the next token is at the last place of every row."""
        import torch

        width = max(len(ids) for ids in batch)
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch])
        ids_BT = torch.tensor([[0] * (width - len(ids)) + ids for ids in batch])  # masked: any token will do
        inputs: dict[str, Any] = {
            "input_ids": ids_BT.to(self.model.device),
            "attention_mask": mask_BT.to(self.model.device),
            "position_ids": (mask_BT.cumsum(-1) - 1).clamp(min=0).to(self.model.device),
            "logits_to_keep": 1,
        }
        known = inspect.signature(self.model.forward).parameters  # recurrent models place tokens by themselves
        return {name: value for name, value in inputs.items() if name in known}


def takes_system(tokenizer: Any) -> bool:
    """False for chat templates that refuse a system turn or leave it out."""
    from jinja2 import TemplateError

    turns = [{"role": "system", "content": "rules"}, {"role": "user", "content": "question"}]
    try:
        return "rules" in tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return False


def choose_labels(
    tokenizer: Any, candidates: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], tuple[list[int], list[int]]]:
    """The first candidates that are one token each, and the tokens of all their spellings.

    A spelling counts only if it is one token for both labels, so that neither has more ways to be said.

    Raises:
        JudgeError: no candidate fits this tokenizer.
    """
    for first, second in candidates:
        spellings = [(_single(tokenizer, one), _single(tokenizer, other)) for one, other in _spellings(first, second)]
        both = [(one, other) for one, other in spellings if one is not None and other is not None]
        ids = (sorted({one for one, _ in both}), sorted({other for _, other in both}))
        if spellings[0] in both and not set(ids[0]) & set(ids[1]):
            return (first, second), ids
    tried = ", ".join(f"{first}/{second}" for first, second in candidates)
    raise JudgeError(f"judge.labels: none of {tried} is two single tokens of this model; name others")


def _spellings(first: str, second: str) -> list[tuple[str, str]]:
    """The two labels as a model may write them: as they are, after a space, and both in lower case."""
    return [
        (f"{space}{one}", f"{space}{other}")
        for one, other in ((first, second), (first.lower(), second.lower()))
        for space in ("", " ")
    ]


def _single(tokenizer: Any, text: str) -> int | None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 else None


def batches(
    fits: Sequence[int], questions: Sequence[Question], tokens: Sequence[list[int]], budget: int
) -> Iterator[list[int]]:
    """Indices to read together: those of one prompt, of like length, both orders of a pair side by side.

    A batch never holds two prompts, so that what a pair's neighbours are (and with them the last digits of its
    logits) does not depend on which other prompts are asked about.
    """
    pairs: dict[tuple[str, str], list[int]] = {}
    for i in fits:
        pairs.setdefault((questions[i].prompt_id, questions[i].pair_id), []).append(i)
    longest = {key: max(len(tokens[i]) for i in members) for key, members in pairs.items()}
    order = sorted(pairs, key=lambda key: (key[0], longest[key], key[1]))
    for _, keys in groupby(order, key=lambda key: key[0]):
        batch: list[int] = []
        for key in keys:
            if batch and longest[key] * (len(batch) + len(pairs[key])) > budget:
                yield batch
                batch = []
            batch += pairs[key]
        yield batch
