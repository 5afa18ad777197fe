"""What a sampler is, and the plan of batches that makes sampling repeatable.

The plan and each batch's seed are functions of the prompts and the recipe alone. So a batch has a key under which its
answers are kept, and a kill, a resume or another number of processes changes nothing. What is left out: how text is
sampled (`local.py`, `openai.py`) and where answers are kept (`pipeline.generate`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pipeline.findings import Finding
from pipeline.plugins import Config
from pipeline.records import Message, Prompt, Response, digest, seed_of


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


class Sampler:
    """Anything that can answer prompts."""

    def sample(self, batch: Batch, source: str) -> list[Response]:
        """Answers to a batch, prompt by prompt: `batch.samples` of them for each, as `source`.

        Raises:
            ModelError: the source is not one this sampler was built with.
        """
        raise NotImplementedError

    def sample_all(self, asked: Sequence[tuple[Batch, str]]) -> Iterator[tuple[int, list[Response]]]:
        """Answers to several batches, each by its source: a batch's number and its answers, as they are there.

        One batch after the other, unless the sampler knows better.
        """
        for number, (batch, source) in enumerate(asked):
            yield number, self.sample(batch, source)


class Question(NamedTuple):
    """What a sampler is asked before a run: whether it can do this."""

    where: str
    """The sampler's key path in the recipe."""
    messages: tuple[Message, ...]
    """A conversation."""
    rendered: int | None
    """Its tokens by the recipe's base. None: not known."""
    longest: int | None
    """Tokens of the longest prompt. None: not known."""
    adapters: bool
    """Policies with adapters will answer."""
    reference: bool
    """Log-probabilities under the base will be wanted."""
    later: bool
    """Only after something was trained."""


class SamplerConfig(Config):
    """Base of every sampler's Config. The subclass adds `name: Literal["its file"]` and its options."""

    REMOTE: ClassVar[bool] = False
    """Others' servers answer, which have the base and take adapters on it; what waits for them needs one process."""

    name: str
    """The sampler: a file of `pipeline/sampling/`, or the dotted name of any module that defines such a Config."""
    batch_size: int
    """Answers sampled at once."""

    @property
    def plain(self) -> bool:
        """Answers are draws from the model's own distribution, neither heated nor cut. Only then does the mean of their
        log-probabilities estimate a KL; a sampler that does not say so has none told of its answers."""
        return False

    def lacks(self) -> Iterator[str]:
        """What is missing for it to answer, as `option: what; what to do`. Loads nothing and asks nobody."""
        return iter(())

    def findings(self, question: Question) -> Iterator[Finding]:
        """What the doctor should tell of it."""
        return iter(())


def plan(prompts: Sequence[Prompt], *, samples: int, batch_size: int, seed: int, purpose: str) -> list[Batch]:
    """Prompts of like length in batches of at most about `batch_size` answers, each batch with a seed of its own.

    As few batches as that takes, all of about one size: a last one that is small would leave most of the processes that
    share them idle. Length is counted in characters, so that planning needs no tokenizer. Longest first: what takes the
    most memory fails at once, and the estimate of the remaining time errs on the safe side.
    """

    def length(prompt: Prompt) -> tuple[int, str]:
        return (sum(len(message.content) for message in prompt.messages), prompt.id)

    ordered = sorted(prompts, key=length, reverse=True)
    number = math.ceil(len(ordered) / max(1, batch_size // samples))
    ends = [len(ordered) * (each + 1) // number for each in range(number)]
    groups = [tuple(ordered[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return [Batch(group, samples, seed_of(seed, purpose, *(prompt.id for prompt in group))) for group in groups]
