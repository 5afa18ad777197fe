"""One batch of episodes: prompts in the order of a seed, the policy's answers to them, and these as tensors.

Everything random is a function of the seed and of the update's number, drawn for the whole batch at once: so a run that
was killed goes on with the same answers, and it does not matter how many processes share the work.
What is left out: scores and losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithms.ppo_completion import Asked, Sampling
from pipeline.algorithms.ppo_roles import Roles
from pipeline.algorithms.ppo_server import Server
from pipeline.algorithms.ranks import Ranks
from pipeline.records import Prompt, Response, seed_of
from pipeline.sampling.local import sample_tokens, uniforms


@dataclass(frozen=True)
class Task:
    """A prompt, and its token ids up to where the answer begins."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Episode:
    """A prompt and a sampled answer to it."""

    task: Task
    answer: tuple[int, ...]
    """Token ids, the end of turn included if it ended by itself."""
    sampled: tuple[float, ...]
    """The log-probabilities of its tokens as the sampler saw them, at its temperature."""
    truncated: bool
    """It was cut at the limit: none of its tokens ends a turn. (A stop token of the prompt does not count.)"""
    told: tuple[tuple[float, ...], ...] = ()
    """What a training pass would say of each token besides: `Roles.telling`. Empty if the sampler cannot tell."""

    def response(self, tokenizer: Any) -> Response:
        """The answer as text, as a judge sees it."""
        ids = self.answer if self.truncated else self.answer[:-1]
        return Response(
            text=tokenizer.decode(list(ids), skip_special_tokens=True),
            source="policy",
            n_tokens=len(self.answer),
            finished=not self.truncated,
        )


@dataclass
class Batch:
    """A batch of episodes with all that the losses need; (B, T) on the processor, fp32, B over all processes."""

    episodes: list[Episode]
    mask_BT: Tensor
    logp_BT: Tensor
    """Under the policy that sampled, as the code that trains computes it, at the sampling temperature."""
    logp_ref_BT: Tensor
    entropy_BT: Tensor
    value_BT: Tensor
    sampled_BT: Tensor
    """What the sampler gave for `logp_BT`."""
    raw_B: Tensor
    """Scores as they came; NaN where there is none."""
    score_B: Tensor
    """Normalised, clipped and with the penalty."""
    advantage_BT: Tensor = field(default_factory=lambda: torch.empty(0))
    return_BT: Tensor = field(default_factory=lambda: torch.empty(0))
    weight_BT: Tensor | None = None


def take(tasks: Sequence[Task], count: int, update: int, seed: int) -> list[Task]:
    """The prompts of this update: `count` of them, from one pass over all in random order after the other."""
    orders: dict[int, list[int]] = {}
    taken = []
    for position in range(update * count, (update + 1) * count):
        epoch, place = divmod(position, len(tasks))
        if epoch not in orders:
            generator = torch.Generator().manual_seed(seed_of(seed, "prompts", epoch))
            orders[epoch] = torch.randperm(len(tasks), generator=generator).tolist()
        taken.append(tasks[orders[epoch][place]])
    return taken


def roll_out(
    roles: Roles,
    tasks: Sequence[Task],
    *,
    eos: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
    ranks: Ranks,
) -> list[Episode]:
    """The policy's answers, in the order of the tasks. Each process samples its share, all get all.

    Args:
        batch_size: answers sampled at once, those to prompts of like length together.
        seed: of the random numbers, which belong to a task's place and not to who samples it.
    """
    uniform_BT = uniforms(len(tasks), max_new_tokens, seed)
    ordered = sorted(range(len(tasks)), key=lambda index: (-len(tasks[index].ids), index))
    own = ordered[ranks.rank :: ranks.world]
    found: list[tuple[int, tuple[int, ...], tuple[tuple[float, ...], ...]]] = []
    with torch.no_grad(), roles.acting("policy"), roles.telling(temperature) as tell:
        for start in range(0, len(own), batch_size):
            chosen = own[start : start + batch_size]
            rows = sample_tokens(
                roles.base,
                [tasks[index].ids for index in chosen],
                uniform_BT[chosen],
                samples=1,
                temperature=temperature,
                eos=eos,
                tell=tell,
            )
            found += [
                (index, tuple(row[0]), tuple(map(tuple, row[1]))) for index, row in zip(chosen, rows, strict=True)
            ]
    return [
        Episode(
            tasks[index],
            answer,
            tuple(each[0] for each in said),
            truncated=answer[-1] not in eos,
            told=tuple(each[1:] for each in said) if roles.exact else (),
        )
        for index, answer, said in sorted(ranks.gather(found))
    ]


def roll_out_served(
    server: Server, tasks: Sequence[Task], *, sampling: Sampling, seed: int, ranks: Ranks
) -> list[Episode]:
    """The answers of the policy's adapter on a server, in the order of the tasks. Each process asks for its share.

    Args:
        seed: of the answers' seeds, which belong to a task's place and not to who asks.

    Raises:
        ServerError: the server stays away, or gives something that cannot be learned from.
    """
    own = range(len(tasks))[ranks.rank :: ranks.world]
    answers = server.answers([Asked(tasks[index].ids, seed_of(seed, index)) for index in own], sampling)
    found = [(index, answer.tokens, answer.logprobs) for index, answer in zip(own, answers, strict=True)]
    return [
        Episode(tasks[index], tokens, logprobs, truncated=tokens[-1] not in sampling.eos)
        for index, tokens, logprobs in sorted(ranks.gather(found))
    ]


def mask_of(episodes: Sequence[Episode]) -> Tensor:
    """(B, T), true for the tokens of the answers."""
    lengths_B = torch.tensor([len(episode.answer) for episode in episodes])
    return torch.arange(int(lengths_B.max()))[None] < lengths_B[:, None]


def minibatches(episodes: Sequence[Episode], count: int, size: int, seed: int) -> list[list[list[int]]]:
    """A pass over the batch: `count` minibatches of micro-batches of at most `size` episodes, by their index.

    Who is in which minibatch is random; within one, sequences of like length share a micro-batch.
    """
    order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed)).tolist()

    def length(index: int) -> tuple[int, int]:
        return (len(episodes[index].task.ids) + len(episodes[index].answer), index)

    found = []
    for number in range(count):
        members = sorted(order[number::count], key=length)
        found.append([members[start : start + size] for start in range(0, len(members), size)])
    return found
