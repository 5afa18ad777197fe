"""A sampler that answers a prompt with numbers made of the batch's seed, named `scripted.sampler` in a recipe."""

import json
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.models import ModelConfig
from pipeline.records import Response
from pipeline.sampling.base import Batch, Sampler, SamplerConfig


class Config(SamplerConfig):
    BUILT: ClassVar[list[tuple[frozenset[str], bool]]] = []
    """(adapters, reference) of every sampler that was built in this process."""
    ANSWERED: ClassVar[list[tuple[str, str]]] = []
    """(source, prompt id) in the order in which they were answered."""

    name: Literal["scripted.sampler"] = "scripted.sampler"
    batch_size: int = 4
    word: str = "number"
    same: bool = False
    """Every answer has the same text."""
    grows: bool = False
    """Each answer to a prompt is longer than the one before."""

    @property
    def plain(self) -> bool:
        return True

    def build(self, model: ModelConfig, adapters: dict[str, Path], *, reference: bool) -> "ScriptedSampler":
        self.BUILT.append((frozenset(adapters), reference))
        walked = {name: folder / "walked.json" for name, folder in adapters.items()}
        words = {name: json.loads(path.read_text())["words"] for name, path in walked.items() if path.exists()}
        return ScriptedSampler(self, words)


class ScriptedSampler(Sampler):
    def __init__(self, config: Config, words: dict[str, int]) -> None:
        self.config = config
        self.words = words
        """Source -> words more than the base has (`scripted.walker`)."""

    def sample(self, batch: Batch, source: str) -> list[Response]:
        self.config.ANSWERED.extend((source, prompt.id) for prompt in batch.prompts)
        return [
            Response(
                text=self.config.word if self.config.same else self._text(batch.seed, place, index, source),
                source=source,
                index=index,
                n_tokens=place + index + 1,
                finished=index != 1,
            )
            for place in range(len(batch.prompts))
            for index in range(batch.samples)
        ]

    def _text(self, seed: int, place: int, index: int, source: str) -> str:
        more = index * self.config.grows + self.words.get(source, 0)
        return f"{self.config.word} {seed % 1000} {place} {index}" + " more" * more
