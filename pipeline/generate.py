"""Stage 1: the policy answers prompts several times, and its answers to a prompt are paired.

The same code answers the held-out prompts for every checkpoint (`pipeline.compare`): several sources instead of one.
Work is shared batch by batch through the journal, so any number of processes, killed at any time, ends with the same
file. What is left out: how text is sampled (`pipeline.sampling`) and which answer is better (`pipeline.label`).
"""

import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline import store
from pipeline.errors import DataError
from pipeline.models import ModelConfig
from pipeline.plugins import Config
from pipeline.progress import Bar
from pipeline.recipe import BASE, AnySampler, GenerateConfig, PromptsConfig
from pipeline.records import Message, Pair, Prompt, Record, Response, seed_of
from pipeline.sampling.base import Batch, plan
from pipeline.worker import Job

KIND = "answers"
"""The kind of the journal's rows: a batch's answers."""

VERSION = 1
"""Raised when a change of this file changes what comes out."""


class Answer(Record):
    """A response and the prompt it answers: a line of `answers.jsonl`."""

    prompt_id: str
    response: Response


class Sampling(Config):
    """What is asked of a sampler: the identity of a step that samples."""

    seed: int
    model: ModelConfig
    sampler: AnySampler
    prompts: PromptsConfig
    samples: int
    purpose: Literal["train", "heldout"]
    """Enters the seeds, so that two steps do not share their random numbers."""


class Pairing(Config):
    """What is done with the answers of the generate step."""

    sampling: Sampling
    pairing: Literal["best_worst", "random", "all"]
    policy: str = BASE
    """Who answers, as the answers' source; unless it is the base, the step that made it is the input `policy`."""

    def identity(self) -> dict[str, Any]:
        """The base goes without saying, as it did when there was no other: its answers are found again."""
        found = super().identity()
        return found if self.policy != BASE else {name: value for name, value in found.items() if name != "policy"}

    @classmethod
    def of(cls, seed: int, model: ModelConfig, generate: GenerateConfig, policy: str = BASE) -> "Pairing":
        """The generate step of a recipe."""
        sampling = Sampling(
            seed=seed,
            model=model,
            sampler=generate.sampler,
            prompts=generate.prompts,
            samples=generate.candidates,
            purpose="train",
        )
        return cls(sampling=sampling, pairing=generate.pairing, policy=policy)


class Item(NamedTuple):
    """A unit of work: one batch by one source."""

    key: str
    batch: Batch
    source: str


def work(job: Job) -> None:
    """Answer this process's share of the training prompts, into the journal."""
    config = Pairing.model_validate(job.options["config"])
    answer(config.sampling, job, _policy(config, job))


def finish(job: Job) -> None:
    """Write prompts.jsonl, answers.jsonl, pairs.jsonl and summary.json."""
    config = Pairing.model_validate(job.options["config"])
    prompts = read_prompts(config.sampling.prompts)
    answers = collect(config.sampling, job, _policy(config, job))
    by_prompt = responses_by_prompt(answers)
    found = [
        pair
        for prompt in prompts
        for pair in pairs_of(prompt, by_prompt[prompt.id], config.pairing, config.sampling.seed)
    ]
    store.write_jsonl(job.out / "prompts.jsonl", prompts)
    store.write_jsonl(job.out / "answers.jsonl", answers)
    store.write_jsonl(job.out / "pairs.jsonl", found)
    without = len(prompts) - len({pair.prompt.id for pair in found})
    store.write_json(
        job.out / "summary.json",
        {**counts(answers), "prompts": len(prompts), "pairs": len(found), "prompts_without_pair": without},
    )


def _policy(config: Pairing, job: Job) -> dict[str, Path | None]:
    return {config.policy: job.inputs.get("policy")}


def answer(config: Sampling, job: Job, adapters: dict[str, Path | None]) -> None:
    """Answer this process's share of the batches, by every source, into the journal.

    Args:
        adapters: the folder of each source's adapter; None for the base.
    """
    items = items_of(config, adapters)
    journal = store.Journal(job.cache / "journal.sqlite")
    keys = [item.key for item in items]
    known = journal.get_many(KIND, keys)
    # Shifted by one from batch to batch, or with two sources and two processes one would get all of the slower source.
    turn = [(number // len(adapters) + number % len(adapters)) % job.world for number in range(len(items))]
    mine = [item for item, rank in zip(items, turn, strict=True) if rank == job.rank and item.key not in known]
    if not mine:
        return
    folders = {name: folder for name, folder in adapters.items() if folder is not None}
    sampler: Any = config.sampler
    built = sampler.build(config.model, folders, reference=len(adapters) > 1)
    started, tokens = time.monotonic(), 0
    with Bar(job.step, total=len(items)) as bar:
        for item in mine:
            responses = built.sample(item.batch, item.source)
            journal.put_many(KIND, {item.key: [response.model_dump(mode="json") for response in responses]})
            tokens += sum(response.n_tokens or 0 for response in responses)
            rate = tokens / (time.monotonic() - started) * job.world
            bar.at(journal.count(KIND, keys), f"{rate:.0f} tokens/s")
    journal.close()


def collect(config: Sampling, job: Job, adapters: dict[str, Path | None]) -> list[Answer]:
    """Every answer from the journal, sorted by prompt, source and number.

    Raises:
        DataError: an answer is missing, which is a defect of the work before.
    """
    items = items_of(config, adapters)
    rows = store.Journal(job.cache / "journal.sqlite").get_many(KIND, [item.key for item in items])
    answers = []
    for item in items:
        if item.key not in rows:
            raise DataError(f"{job.step}: a batch of answers is missing from {job.cache}; run the same command again")
        for number, row in enumerate(rows[item.key]):
            prompt = item.batch.prompts[number // item.batch.samples]
            answers.append(Answer(prompt_id=prompt.id, response=Response.model_validate(row)))
    return sorted(answers, key=lambda each: (each.prompt_id, each.response.source, each.response.index))


def items_of(config: Sampling, adapters: dict[str, Path | None]) -> list[Item]:
    """The whole work, a function of prompts, recipe and adapters alone."""
    batches = plan(
        read_prompts(config.prompts),
        samples=config.samples,
        batch_size=config.sampler.batch_size,
        seed=config.seed,
        purpose=config.purpose,
    )
    identities = {
        source: {
            "version": VERSION,
            "model": config.model.identity(),
            "sampler": config.sampler.identity(),
            "adapter": _digest(folder),
            # Named, because the response carries it; and with other checkpoints about, the base is asked for its KL.
            "source": source,
            "reference": len(adapters) > 1,
        }
        for source, folder in adapters.items()
    }
    return [Item(batch.key(identity), batch, source) for batch in batches for source, identity in identities.items()]


def read_prompts(config: PromptsConfig) -> list[Prompt]:
    """The prompts of a recipe, with its system message if they have none of their own.

    Raises:
        DataError: a file is missing or has a bad line, or two prompts have one id.
    """
    every = itertools.chain.from_iterable(store.read_jsonl(path, Prompt) for path in config.files)
    prompts = list(itertools.islice(every, config.limit))
    twice = [name for name, times in Counter(prompt.id for prompt in prompts).items() if times > 1]
    if twice:
        files = ", ".join(str(path) for path in config.files)
        raise DataError(f"{files}: {len(twice)} ids are there more than once, such as {twice[0]!r}; make them unique")
    return [_with_system(prompt, config.system) for prompt in prompts]


def responses_by_prompt(answers: Iterable[Answer]) -> dict[str, list[Response]]:
    """Each prompt's responses, in the order of the answers."""
    found: dict[str, list[Response]] = defaultdict(list)
    for each in answers:
        found[each.prompt_id].append(each.response)
    return found


def pairs_of(prompt: Prompt, responses: Sequence[Response], pairing: str, seed: int) -> list[Pair]:
    """The pairs that the judge is asked about. Of responses with one text only the first takes part."""
    first: dict[str, Response] = {}
    for response in sorted(responses, key=lambda each: each.key):
        first.setdefault(response.text, response)
    different = list(first.values())
    if pairing == "random":
        random.Random(seed_of(seed, "pairing", prompt.id)).shuffle(different)
        couples = list(zip(different[::2], different[1::2], strict=False))
    else:
        couples = list(itertools.combinations(different, 2))
    return [Pair.of(prompt, one, other) for one, other in couples]


def counts(answers: Sequence[Answer]) -> dict[str, int]:
    """How many answers, tokens and answers that ended by themselves."""
    responses = [each.response for each in answers]
    return {
        "answers": len(responses),
        "tokens": sum(response.n_tokens or 0 for response in responses),
        "finished": sum(response.finished is True for response in responses),
    }


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    if system is None or prompt.messages[0].role == "system":
        return prompt
    return prompt.model_copy(update={"messages": (Message(role="system", content=system), *prompt.messages)})


def _digest(folder: Path | None) -> str | None:
    if folder is None:
        return None
    manifest = store.read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder}: the checkpoint's MANIFEST.json is missing or damaged; run the same command again")
    return str(manifest["digest"])
