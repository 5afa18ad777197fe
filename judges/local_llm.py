"""A language model in this process, asked which of two answers is better, read off the logits of one label token.

Both orders of a pair are in one batch where `both_orders` asks. No reply is generated, so none can be unreadable;
where the model was about to say something else than a label, the verdict is an abstention.

What is left out: the question (`judges.pairwise`), and models behind an API (`judges.llm`).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar, Literal

from pydantic import Field

from judges.base import Session
from judges.pairwise import PairwiseConfig, PairwiseJudge, Question, Reading
from pipeline.errors import JudgeError
from pipeline.models import ModelConfig, system_as_taken
from pipeline.records import Message


class Config(PairwiseConfig):
    """A local model and how it is asked."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    name: Literal["local_llm"] = "local_llm"
    model: ModelConfig = ModelConfig(quantization="none")
    """The model that judges. It needs a chat template."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Tokens in one forward pass, padding included. Lower it where memory is short."""

    def build(self, session: Session) -> PairwiseJudge:
        return PairwiseJudge(self, LocalModel.load(self))


class LocalModel:
    """Reads the labels off the logits of a transformers model, both orders of a pair in one batch."""

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[tuple[str, str]], batch_tokens: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.contract = "label"
        self.as_taken = system_as_taken(tokenizer)
        self.labels, self.label_ids = choose_labels(tokenizer, labels)
        added = tokenizer.added_tokens_decoder.values()
        self.special_tokens = tuple(sorted({str(token) for token in added if token.special}))
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
        questions = list(questions)
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
        return chat_ids(self.tokenizer, self.as_taken((system, user)))

    def _logprobs(self, batch: Sequence[list[int]]) -> list[tuple[float, float]]:
        """Log-probability in nats of each label as the next token, its spellings summed."""
        import torch

        from pipeline.architectures import alike
        from pipeline.decoding import begin

        found: dict[int, tuple[float, float]] = {}
        for places in alike(self.model, batch):
            with torch.inference_mode():
                logp_BV = begin(self.model, [batch[place] for place in places])[1].log_softmax(-1)
                both = [torch.logsumexp(logp_BV[:, ids], -1).tolist() for ids in self.label_ids]
            found |= {place: (both[0][row], both[1][row]) for row, place in enumerate(places)}
        return [found[place] for place in range(len(batch))]


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
