"""A scripted sampler that is killed at its second batch, once; named `scripted.mortal` in a recipe.

It writes to `answered.txt` whom it answered, source and prompt a line, and `died` says that it was killed.
"""

import os
import signal
from pathlib import Path
from typing import Literal

from scripted import sampler

from pipeline.models import ModelConfig
from pipeline.records import Response
from pipeline.sampling.base import Batch, Sampler


class Config(sampler.Config):
    name: Literal["scripted.mortal"] = "scripted.mortal"  # type: ignore[assignment]

    def build(self, model: ModelConfig, adapters: dict[str, Path], *, reference: bool) -> "MortalSampler":
        return MortalSampler(super().build(model, adapters, reference=reference))


class MortalSampler(Sampler):
    def __init__(self, inner: sampler.ScriptedSampler) -> None:
        self.inner = inner
        self.batches = 0

    def sample(self, batch: Batch, source: str) -> list[Response]:
        self.batches += 1
        if self.batches == 2 and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with open("answered.txt", "a") as file:
            file.writelines(f"{source} {prompt.id}\n" for prompt in batch.prompts)
        return self.inner.sample(batch, source)
