"""Stage 1: the policy answers prompts several times, and its answers to a prompt are paired.

The same code answers the held-out prompts for every checkpoint (`pipeline.compare`): several sources instead of one.
Work is shared batch by batch through the journal, so any number of processes, killed at any time, ends with the same
file. A task of a job array keeps its share in a part of its own (`pipeline.parts`), which the step takes into the
journal before it answers what is missing. What is left out: how text is sampled (`pipeline.sampling`) and which answer
is better (`pipeline.label`).
"""

import gc
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline import parts, store
from pipeline.errors import DataError
from pipeline.models import ModelConfig
from pipeline.phases import Phases
from pipeline.plugins import Config
from pipeline.progress import Bar
from pipeline.recipe import BASE, AnySampler, GenerateConfig, PromptsConfig
from pipeline.records import Message, Pair, Prompt, Record, Response, seed_of
from pipeline.sampling.base import Batch, plan
from pipeline.worker import Job

KIND = "answers"
"""The kind of the journal's rows: a batch's answers."""

VERSION = 2
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


class Policy(NamedTuple):
    """Who answers: the base, what was trained on it, or a model of its own."""

    folder: Path | None = None
    """An adapter, or weights of the base. None: the base as it came, or a whole model."""
    digest: str | None = None
    """Of what is in the folder, or of the whole model; answers are kept under it. None: the base."""
    whole: ModelConfig | None = None
    """The model in the place of the base."""

    @classmethod
    def of(cls, folder: Path | None) -> "Policy":
        """What a train step published; None: the base.

        Raises:
            DataError: the folder was not published.
        """
        if folder is None:
            return cls()
        manifest = store.read_manifest(folder)
        if manifest is None:
            raise DataError(
                f"{folder}: the checkpoint's {store.MANIFEST} is missing or damaged; run the same command again"
            )
        return cls(folder, str(manifest["digest"]))


class Elsewhere(Config):
    """What no step of this run made, a checkpoint or a reward model, known by what is in it."""

    RUNTIME = frozenset({"folder", "whole"})

    name: str
    digest: str
    folder: Path
    """An adapter or weights of the base, or a whole model."""
    whole: ModelConfig | None
    """How a whole model is loaded."""

    def identity(self) -> dict[str, Any]:
        """Where a whole model lies is no matter, and how it is loaded is."""
        whole = self.whole and {**self.whole.identity(), "base": self.digest}
        return {**super().identity(), "whole": whole}

    def policy(self) -> Policy:
        """As it answers."""
        return Policy(None if self.whole else self.folder, self.digest, self.whole)


def policy_called(name: str, elsewhere: Iterable[Elsewhere], job: Job) -> Policy:
    """What is called so: from elsewhere, or made by a step of this run; else the base."""
    found = next((each for each in elsewhere if each.name == name), None)
    return found.policy() if found else Policy.of(job.inputs.get(f"train.{name}"))


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


def _policy(config: Pairing, job: Job) -> dict[str, Policy]:
    return {config.policy: Policy.of(job.inputs.get("policy"))}


def answer(config: Sampling, job: Job, policies: Mapping[str, Policy]) -> None:
    """Answer this process's share of the batches, by every policy, into the journal or its part.

    One base is loaded for all that was trained on it. Models of their own come after it, one at a time.
    """
    # Two names of one policy are one item.
    items = list({item.key: item for item in items_of(config, policies)}.values())
    # Shifted by one from batch to batch, or with two sources and two processes one would get all of the slower source.
    turn = [(number // len(policies) + number % len(policies)) % job.world for number in range(len(items))]
    share = [item for item, rank in zip(items, turn, strict=True) if rank == job.rank]
    kept = _kept(job)
    # Those that share a journal count together, a task of a job array by itself.
    counting = 1 if job.part else job.world
    counted = [item.key for item in (share if job.part else items)]
    known = kept.get_many(KIND, counted)
    mine = [item for item in share if item.key not in known]
    started, tokens, phases = time.monotonic(), 0, Phases(job)
    with Bar(job.step, total=len(counted)) as bar:
        for model, group in _by_model(mine, policies).items():
            with phases("loading"):
                built = _sampler(config, model, policies, {item.source for item in group})
            # Whatever the base is called here, to a sampler it is the base, and so is a whole model.
            asked = [(item.batch, item.source if policies[item.source].folder else BASE) for item in group]
            with phases("generation"):
                for number, responses in built.sample_all(asked):
                    kept.put_many(KIND, {group[number].key: [each.model_dump(mode="json") for each in responses]})
                    tokens += sum(response.n_tokens or 0 for response in responses)
                    rate = tokens / (time.monotonic() - started) * counting
                    bar.at(kept.count(KIND, counted), f"{rate:.0f} tokens/s")
            # The next model needs the room.
            del built
            gc.collect()
    kept.close()
    phases.tell()


def _kept(job: Job) -> store.Journal | parts.Part:
    """Where answers are kept: the part of this task, or the journal, with what tasks have found out before."""
    if job.part is not None:
        return parts.Part(job.part)
    journal = store.Journal(job.cache / store.JOURNAL)
    parts.merge(job.work_dir / parts.FOLDER, journal)
    return journal


def _by_model(items: Iterable[Item], policies: Mapping[str, Policy]) -> dict[ModelConfig | None, list[Item]]:
    """The items of each model that is loaded, the base (None) first."""
    found: dict[ModelConfig | None, list[Item]] = {None: []}
    for item in items:
        found.setdefault(policies[item.source].whole, []).append(item)
    return {model: group for model, group in found.items() if group}


def _sampler(
    config: Sampling, model: ModelConfig | None, policies: Mapping[str, Policy], asked: Collection[str]
) -> Any:
    """The sampler of the base with those that are asked for on it, or of a whole model alone."""
    sampler: Any = config.sampler
    if model is not None:
        return sampler.build(model, {}, reference=False)
    folders = {name: folder for name, policy in policies.items() if (folder := policy.folder) and name in asked}
    return sampler.build(config.model, folders, reference=_referred(config, policies))


def _referred(config: Sampling, policies: Mapping[str, Policy]) -> bool:
    """Whether answers are also scored by the base: where policies are compared, and answers tell of their KL."""
    return len(policies) > 1 and config.sampler.plain


def collect(config: Sampling, job: Job, policies: Mapping[str, Policy]) -> list[Answer]:
    """Every answer from the journal, sorted by prompt, source and number.

    Raises:
        DataError: an answer is missing, which is a defect of the work before.
    """
    items = items_of(config, policies)
    rows = store.Journal(job.cache / store.JOURNAL).get_many(KIND, [item.key for item in items])
    answers = []
    for item in items:
        if item.key not in rows:
            raise DataError(f"{job.step}: a batch of answers is missing from {job.cache}; run the same command again")
        for number, row in enumerate(rows[item.key]):
            prompt = item.batch.prompts[number // item.batch.samples]
            # Whoever asked first may have called the same policy otherwise.
            answers.append(
                Answer(prompt_id=prompt.id, response=Response.model_validate({**row, "source": item.source}))
            )
    return sorted(answers, key=lambda each: (each.prompt_id, each.response.source, each.response.index))


def items_of(config: Sampling, policies: Mapping[str, Policy]) -> list[Item]:
    """The whole work, a function of prompts, recipe and policies alone."""
    batches = plan(
        read_prompts(config.prompts),
        samples=config.samples,
        batch_size=config.sampler.batch_size,
        seed=config.seed,
        purpose=config.purpose,
    )
    identities = {source: _identity(config, policy, _referred(config, policies)) for source, policy in policies.items()}
    return [Item(batch.key(identity), batch, source) for batch in batches for source, identity in identities.items()]


def _identity(config: Sampling, policy: Policy, referred: bool) -> dict[str, Any]:
    """What answers are kept under: what a policy is, and not what it is called or where it lies."""
    model = config.model.identity() if policy.whole is None else {**policy.whole.identity(), "base": policy.digest}
    return {
        "version": VERSION,
        "model": model,
        "sampler": config.sampler.identity(),
        "adapter": policy.digest if policy.whole is None else None,
        # Where others are about, the base may be asked for its log-probabilities too.
        "reference": referred and policy.whole is None,
    }


def read_prompts(config: PromptsConfig) -> list[Prompt]:
    """The prompts of a recipe, with its system message if they have none of their own.

    Raises:
        DataError: a file is missing or has a bad line, none has a prompt, or two prompts have one id.
    """
    every = itertools.chain.from_iterable(store.read_jsonl(path, Prompt) for path in config.files)
    prompts = list(itertools.islice(every, config.limit))
    files = ", ".join(str(path) for path in config.files)
    if not prompts:
        raise DataError(f'{files}: no prompt is there; write one a line, such as {{"id": "1", "prompt": "Why?"}}')
    twice = [name for name, times in Counter(prompt.id for prompt in prompts).items() if times > 1]
    if twice:
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
