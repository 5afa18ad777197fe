"""Prefers the answer that a language model finds likelier from an assistant that keeps a constitution.

The score of an answer is its mean log-probability per token after a system message that states the constitution,
minus, with a `contrast`, the same after a system message that states the opposite. The end of the turn is one of the
tokens, also of an answer that was cut at the limit: what the reader gets is an answer that stops there, and stopping
in mid-sentence is unlikely. Each answer is scored alone, so there is no position to be biased by.

It serves small models, which cannot be asked "A or B?" but can tell coherent, on-topic text from the rest. What it
cannot do: see facts; and it is fond of repetition, which `rules` is not.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from judges.base import JudgeConfig, Session
from judges.pointwise import PointwiseJudge
from pipeline.models import ModelConfig
from pipeline.records import Message, Prompt, Response


class Config(JudgeConfig):
    """How likelihood is measured."""

    VERSION: ClassVar[int] = 2

    name: Literal["likelihood"] = "likelihood"
    model: ModelConfig = ModelConfig(quantization="none")
    """The model that reads the answers. It may be the policy's base or any other."""
    constitution: str = (
        "You are a helpful assistant. Your answers are correct, clear, polite and to the point: "
        "you do exactly what the user asked, in good language, and stop."
    )
    """The system message under which a good answer is likely."""
    contrast: str | None = None
    """A system message under which a bad answer is likely; its log-probability is subtracted. None: nothing is."""
    temperature: float = Field(default=0.3, gt=0)
    """Nats per token: a difference of this much makes the better answer 73 % likely to be preferred."""

    def build(self, session: Session) -> "LikelihoodJudge":
        return LikelihoodJudge(self)


class LikelihoodJudge(PointwiseJudge):
    def __init__(self, config: Config) -> None:
        from pipeline.models import load_model, load_tokenizer, system_as_taken
        from pipeline.reading import Opening

        super().__init__(config, config.temperature)
        self.constitution, self.contrast = config.constitution, config.contrast
        self.tokenizer = load_tokenizer(config.model)
        self.as_taken = system_as_taken(self.tokenizer)
        self.model = load_model(config.model)
        systems = [system for system in (self.constitution, self.contrast) if system is not None]
        self.openings = {system: Opening.of(self.model, self._begins(system)) for system in systems}

    def looked_at(self, response: Response) -> Response:
        """Only the text: what the reader gets ends there, also where it was cut."""
        return Response(text=response.text, source="")

    def scores(self, prompt: Prompt, responses: Sequence[Response]) -> list[float | None]:
        """Nats per token of each answer; None where the conversation does not fit the model."""
        answers = [response.text for response in responses]
        good = self._means(prompt, answers, self.constitution)
        if self.contrast is None:
            return good
        bad = self._means(prompt, answers, self.contrast)
        return [None if g is None or b is None else g - b for g, b in zip(good, bad, strict=True)]

    def _means(self, prompt: Prompt, answers: list[str], system: str) -> list[float | None]:
        from pipeline.models import answer_ids, chat_ids
        from pipeline.reading import answer_logprobs

        prefix = chat_ids(self.tokenizer, self.as_taken(_under(system, prompt)))
        ids = [answer_ids(self.tokenizer, text, finished=True) for text in answers]
        room = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        fits = [index for index, answer in enumerate(ids) if len(prefix) + len(answer) <= room]
        means: list[float | None] = [None] * len(ids)
        if fits:
            found = answer_logprobs(self.model, prefix, [ids[index] for index in fits], self.openings[system])
            for index, logprobs in zip(fits, found, strict=True):
                means[index] = float(logprobs.double().mean())
        return means

    def _begins(self, system: str) -> Sequence[int]:
        """Token ids with which every conversation under this system message begins, whatever follows it."""
        from pipeline.decoding import shared
        from pipeline.models import chat_ids

        user = Message(role="user", content="Why?")
        asked = [
            Prompt(id="", messages=turns) for turns in ((user,), (Message(role="system", content="Be brief."), user))
        ]
        return shared([chat_ids(self.tokenizer, self.as_taken(_under(system, each))) for each in asked])


def _under(system: str, prompt: Prompt) -> tuple[Message, ...]:
    """The conversation under the constitution; a system message of its own follows it."""
    own = [message.content for message in prompt.messages if message.role == "system"]
    turns = [message for message in prompt.messages if message.role != "system"]
    return (Message(role="system", content="\n\n".join([system, *own])), *turns)
