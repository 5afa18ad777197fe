"""A reward model: a network that was trained to give an answer to a prompt one score, higher is better.

Each different answer is read once, however many pairs it is in. A decoder's score is that of the last token, found by
the attention mask: transformers' own classifiers look for the last token that is not the pad id, and read another one
where an answer ends with that id, as it does in many chat models. An encoder's score is its own classifier's.

What is left out: training one (`pipeline.algorithms.reward_model`). What does not fit the model is not cut: the verdict
is an abstention.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from judges.base import JudgeConfig, Session
from judges.pointwise import PointwiseJudge
from judges.rendering import break_up, literally
from pipeline.models import ModelConfig
from pipeline.records import Message, Pair, Prompt, Response, Verdict, digest
from pipeline.store import sha256_file

ADAPTER_FILES = ("reward_model.json", "adapter_config.json", "adapter_model.safetensors")
"""What a `reward_model` train step leaves and its scores depend on."""

ROWS = 16
"""Answers a forward pass."""


class Config(JudgeConfig):
    """Which reward model, and how far apart its scores are."""

    name: Literal["reward_model"] = "reward_model"
    model: ModelConfig | None = None
    """A sequence classifier with one output, decoder or encoder, on the hub or in a folder."""
    adapter: Path | None = None
    """In its place: the folder of a `reward_model` train step, `runs/<run>/steps/train.<step>/<fingerprint>`. It says
    which base it belongs to."""
    temperature: float | None = Field(default=None, gt=0)
    """A difference of so much in the score makes the better answer 73 % likely to be preferred. None: what was fitted
    on the train step's held-out pairs; 1 for a `model`, which brings none."""

    @field_validator("adapter")
    @classmethod
    def _is_a_reward_model(cls, value: Path | None) -> Path | None:
        missing = [name for name in ADAPTER_FILES if value is not None and not (value / name).is_file()]
        if missing:
            raise ValueError(
                f"{value} has no {' and no '.join(missing)}; name the folder that a reward_model step left"
            )
        return value

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.model is None) == (self.adapter is None):
            raise ValueError("needs `model`, a reward model, or else `adapter`, the folder of a reward_model step")
        return self

    def identity(self) -> dict[str, Any]:
        # What is in the folder and not where it is.
        files = [sha256_file(self.adapter / name) for name in ADAPTER_FILES] if self.adapter else None
        return {**super().identity(), "adapter": digest(files) if files else None}

    def build(self, session: Session) -> "RewardModelJudge":
        reader = _trained(self.adapter) if self.adapter else _whole(self.model or ModelConfig())
        return RewardModelJudge(self, reader, reader.temperature if self.temperature is None else self.temperature)

    def summary(self, verdicts: Iterable[Verdict]) -> dict[str, float]:
        """The temperature that it judged at."""
        used = (verdict.evidence.get("temperature") for verdict in verdicts)
        return next(({"temperature_points": each} for each in used if each is not None), {})


class Reader:
    """A reward model in memory: what it reads of an answer, and the scores of some of what it reads."""

    def __init__(
        self,
        encode: Callable[[Sequence[Message], Response], dict[str, list[int]]],
        scores: Callable[[list[dict[str, list[int]]]], list[float]],
        room: float,
        temperature: float = 1.0,
    ) -> None:
        self.encode = encode
        self.scores = scores
        self.room = room
        """Tokens that it can read; what is longer has no score."""
        self.temperature = temperature
        """What its scores are divided by unless the recipe says otherwise."""


class RewardModelJudge(PointwiseJudge):
    def __init__(self, config: Config, reader: Reader, temperature: float) -> None:
        super().__init__(config, temperature)
        self.reader = reader

    def scores(self, prompt: Prompt, responses: Sequence[Response]) -> list[float | None]:
        """The reward of each; None where prompt and answer do not fit the model."""
        rows = [self.reader.encode(prompt.messages, response) for response in responses]
        fits = [index for index, row in enumerate(rows) if len(row["input_ids"]) <= self.reader.room]
        found: list[float | None] = [None] * len(rows)
        for start in range(0, len(fits), ROWS):
            batch = fits[start : start + ROWS]
            for index, score in zip(batch, self.reader.scores([rows[index] for index in batch]), strict=True):
                found[index] = score
        return found

    def _verdict(self, pair: Pair, scores: dict[Response, float | None]) -> Verdict:
        found = super()._verdict(pair, scores)
        return found.model_copy(update={"evidence": {**found.evidence, "temperature": self.temperature}})


def _trained(folder: Path) -> Reader:
    """What a train step left: exactly the tokens and the head that it was trained with."""
    from pipeline.algorithms import scoring

    reward = scoring.SeparateReward(scoring.load_reward(folder))
    head, tokenizer = reward.head, reward.tokenizer
    room = min(head.max_length, scoring.room(reward.model, tokenizer))

    def encode(messages: Sequence[Message], response: Response) -> dict[str, list[int]]:
        if head.pool == "last":
            # One more than there is room for, so that what does not fit is seen and not cut.
            return {"input_ids": scoring.conversation_ids(tokenizer, messages, response, int(room) + 1)}
        return dict(_pair(tokenizer, messages, response.text))

    def scores(rows: list[dict[str, list[int]]]) -> list[float]:
        return scoring.classifier_scores(reward.model, [row["input_ids"] for row in rows], head.pad_id)

    return Reader(encode, scores, room, head.temperature)


def _whole(config: ModelConfig) -> Reader:
    """A model of others: prompt and answer through its chat template, or as a pair of texts where it has none."""
    from pipeline.algorithms import scoring
    from pipeline.models import load_classifier, load_tokenizer

    model, tokenizer = load_classifier(config), load_tokenizer(config, chat=False)
    decoder = hasattr(model, "score")
    special = literally(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)

    def encode(messages: Sequence[Message], response: Response) -> dict[str, list[int]]:
        # An answer that spells out control tokens could else end itself and open a turn of its own.
        text = break_up(response.text, special)
        if tokenizer.chat_template is None:
            return dict(_pair(tokenizer, messages, text))
        turns = [{"role": message.role, "content": message.content} for message in messages]
        turns.append({"role": "assistant", "content": text})
        return dict(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True))

    return Reader(encode, _last_token(model) if decoder else _own(model, tokenizer), scoring.room(model, tokenizer))


def _last_token(model: Any) -> Callable[[list[dict[str, list[int]]]], list[float]]:
    """The scores of a decoder, computed in fp32 from the hidden state of each row's last token."""
    from pipeline.algorithms.scoring import last_hidden, padded

    body = getattr(model, model.base_model_prefix)
    head = model.score.float()

    def scores(rows: list[dict[str, list[int]]]) -> list[float]:
        import torch

        with torch.inference_mode():
            ids_BT, mask_BT = padded([row["input_ids"] for row in rows], 0, model.device)  # masked: any token will do
            found: list[float] = head(last_hidden(body, ids_BT, mask_BT).float())[:, 0].tolist()
        return found

    return scores


def _own(model: Any, tokenizer: Any) -> Callable[[list[dict[str, list[int]]]], list[float]]:
    """The scores of an encoder's own classifier."""

    def scores(rows: list[dict[str, list[int]]]) -> list[float]:
        import torch

        tokenizer.padding_side = "right"
        batch = tokenizer.pad(rows, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            found: list[float] = model(**batch).logits.float()[:, 0].tolist()
        return found

    return scores


def _pair(tokenizer: Any, messages: Sequence[Message], answer: str) -> Any:
    """[CLS] prompt [SEP] answer [SEP], nothing cut."""
    return tokenizer("\n".join(message.content for message in messages), answer)
