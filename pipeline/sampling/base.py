"""What a sampler is, and the plan of batches that makes sampling repeatable.

The plan and each batch's seed are functions of the prompts and the recipe alone. So a batch has a key under which its
answers are kept, and a kill, a resume or another number of processes changes nothing. What is left out: how text is
sampled (`local.py`) and where answers are kept (`pipeline.generate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.plugins import Config
from pipeline.records import Prompt, Response, digest, seed_of


@dataclass(frozen=True)
class Batch:
    """Prompts that are answered together."""

    prompts: tuple[Prompt, ...]
    samples: int
    """Answers a prompt."""
    seed: int

    def key(self, identity: dict[str, Any]) -> str:
        """Under which this batch's answers are kept: everything that changes them.

        Args:
            identity: of the model, the adapter and the sampler.
        """
        asked = [[prompt.id, [[turn.role, turn.content] for turn in prompt.messages]] for prompt in self.prompts]
        return digest([identity, asked, self.samples, self.seed], length=64)


class Sampler(Protocol):
    """Anything that can answer prompts."""

    def sample(self, batch: Batch, source: str) -> list[Response]:
        """Answers to a batch, prompt by prompt: `batch.samples` of them for each, as `source`.

        Raises:
            ModelError: the source is not one this sampler was built with.
        """
        ...


class SamplerConfig(Config):
    """Base of every sampler's Config. The subclass adds `name: Literal["its file"]` and its options."""

    name: str
    """The sampler: a file of `pipeline/sampling/`, or the dotted name of any module that defines such a Config."""
    batch_size: int
    """Answers sampled at once."""


def plan(prompts: Sequence[Prompt], *, samples: int, batch_size: int, seed: int, purpose: str) -> list[Batch]:
    """Prompts of like length in batches of about `batch_size` answers, each batch with a seed of its own.

    Length is counted in characters, so that planning needs no tokenizer. Longest first: what takes the most memory
    fails at once, and the estimate of the remaining time errs on the safe side.
    """

    def length(prompt: Prompt) -> tuple[int, str]:
        return (sum(len(message.content) for message in prompt.messages), prompt.id)

    ordered = sorted(prompts, key=length, reverse=True)
    step = max(1, batch_size // samples)
    groups = [tuple(ordered[start : start + step]) for start in range(0, len(ordered), step)]
    return [Batch(group, samples, seed_of(seed, purpose, *(prompt.id for prompt in group))) for group in groups]
