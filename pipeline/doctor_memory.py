"""The memory plan of a recipe: what each step that loads a model will take, and what would fit where it does not.

A plan is for the longest rows that the recipe allows, so a step may stay below it. Of a step that several processes
do, it is for one of them, on a GPU of its own, or for those that share this machine's memory. What is left out: the
formulas (`pipeline.memory`), judges behind a server, and algorithms and samplers that are not of this project.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from judges.base import JudgeConfig
from pipeline.algorithms import kto, ppo, reward_model, sft
from pipeline.algorithms.base import AlgorithmConfig
from pipeline.algorithms.groups import GroupConfig
from pipeline.algorithms.policy import PolicyConfig
from pipeline.findings import Finding, Level
from pipeline.measure import TOKENS
from pipeline.memory import ADAPTER, Change, Sizes, Tuned, Work, nearest, number_of, peak, sizes_of
from pipeline.models import ModelConfig, processes_for
from pipeline.plugins import Config
from pipeline.recipe import Recipe

OWN = frozenset({"sft", "dpo", "kto", "reward_model", "ppo", "rloo", "grpo"})
"""Algorithms whose work is known."""

CLOSE = 0.85
"""Share of the memory from which on a plan is close. Whole runs on a processor were up to 1.8 times above it."""

JUDGED_TOKENS = 8192
"""Tokens of a forward pass of a judge that does not say how many it reads at once."""


class Loaded(NamedTuple):
    """A model that a step loads, and what is done with it there."""

    step: str
    model: ModelConfig
    work: Work
    options: dict[str, str]
    """`memory.Change.option` -> the key path that sets it. What is not in it cannot be set."""
    processes: int = 1
    """On one machine."""


def memory_findings(recipe: Recipe, prompts: dict[str, int], memory: int, *, gpu: bool) -> Iterator[Finding]:
    """The plan of each step, against so many bytes.

    Args:
        prompts: tokens of the longest prompt, of `train` and of `heldout`, and by its key path (`train.sft`) of the
            longest demonstration of a step; what is missing is not known yet.
    """
    counted = cache(sizes_of)
    for each in loads(recipe, prompts, gpu=gpu):
        yield _finding(each, counted(each.model), memory, gpu=gpu)


def loads(recipe: Recipe, prompts: dict[str, int], *, gpu: bool) -> Iterator[Loaded]:
    """Every model that a step of this recipe loads."""
    for each in _loads(recipe, prompts):
        yield each._replace(work=replace(each.work, number=number_of(each.model, gpu=gpu)))


def _loads(recipe: Recipe, prompts: dict[str, int]) -> Iterator[Loaded]:
    longest = {"answer": 0, "candidates": 2, **prompts}
    if recipe.generate is not None:
        sampler = recipe.generate.sampler
        longest |= {"answer": getattr(sampler, "max_new_tokens", 0), "candidates": recipe.generate.candidates}
        asked = longest.get("train")
        yield from _sampling("generate", "generate.sampler", recipe.model, sampler, asked, recipe.generate.processes)
    if recipe.judge is not None:
        yield from _judging("label", recipe.judge, recipe.label.processes)
    for name, algorithm in recipe.train.items():
        yield from _training(name, algorithm, recipe, longest)
    drawn = recipe.compare.sampler or (recipe.generate and recipe.generate.sampler)
    policies = [step for step in recipe.train.values() if step.MAKES == "policy"]
    heldout = longest.get("heldout")
    block = "compare.sampler" if recipe.compare.sampler else "generate.sampler"
    yield from _sampling("answers", block, recipe.model, drawn, heldout, recipe.compare.processes, policies)
    if recipe.compare.perplexity is not None:
        rewards = sum(step.MAKES == "reward" for step in recipe.train.values())
        yield _reading(recipe.model, recipe.compare.processes, policies, rewards, recipe.compare.perplexity.max_length)
    for number, judge in enumerate(recipe.compare.judges):
        yield from _judging("compare", judge, recipe.compare.processes, f"compare.judges.{number}")


def work_of(
    algorithm: AlgorithmConfig, model: ModelConfig, *, prompt: int | None, answer: int, candidates: int
) -> Work:
    """What a train step does with its base.

    Args:
        prompt: tokens of the longest prompt. None: not known, so that only `max_length` bounds a row.
        answer: tokens of the longest answer. 0: prompts are whole rows.
        candidates: answers to a prompt.
    """
    samples = isinstance(algorithm, ppo.Config | GroupConfig)
    if isinstance(algorithm, ppo.Config):
        answer = algorithm.max_new_tokens
    elif isinstance(algorithm, GroupConfig):
        answer = algorithm.max_completion_length
    packed = isinstance(algorithm, sft.Config) and algorithm.packing
    length = algorithm.max_length if prompt is None or packed else min(algorithm.max_length, prompt + answer)
    scores = isinstance(algorithm, reward_model.Config)
    each = 2 if algorithm.name == "dpo" else 1
    if isinstance(algorithm, reward_model.Config):
        each = candidates if algorithm.pairs == "all" else 2
    tuned = _tuned(algorithm)
    return Work(
        kind="ppo" if isinstance(algorithm, ppo.Config) else "train",
        batch=algorithm.per_device_train_batch_size,
        each=each,
        length=length,
        answer=0 if scores else min(answer, length) if samples else length,
        quantization=model.quantization,
        double=model.double_quantization,
        rank=algorithm.lora.r if tuned.tune == "lora" else 0,
        dora=algorithm.lora.use_dora and tuned.tune == "lora",
        frozen=_further_adapters(algorithm),
        tuned=tuned,
        reference=tuned.tune != "lora" and not isinstance(algorithm, sft.Config),
        checkpointing=algorithm.gradient_checkpointing,
        rollout=_rollout(algorithm),
        least=2 if isinstance(algorithm, kto.Config) else 1,
    )


def _training(name: str, algorithm: AlgorithmConfig, recipe: Recipe, longest: dict[str, int]) -> Iterator[Loaded]:
    if algorithm.name not in OWN:
        return
    model = getattr(algorithm, "base", None) or recipe.model
    at = f"train.{name}"
    shows = isinstance(algorithm, sft.Config) and algorithm.data is not None
    work = work_of(
        algorithm,
        model,
        prompt=longest.get(at if shows else "train"),
        answer=0 if shows else longest["answer"],
        candidates=longest["candidates"],
    )
    options = {
        "batch": f"{at}.per_device_train_batch_size",
        "max_length": f"{at}.max_length",
        "gradient_checkpointing": f"{at}.gradient_checkpointing",
        "quantization": "model.quantization" if model == recipe.model else f"{at}.base.quantization",
    }
    launch = algorithm.launch or recipe.launch
    work = replace(work, zero=launch.zero, world=launch.world, offload=launch.offload)
    yield Loaded(at, model, work, options, launch.gpus)


def _tuned(algorithm: AlgorithmConfig) -> Tuned:
    return Tuned(algorithm.tune, algorithm.layers) if isinstance(algorithm, PolicyConfig) else ADAPTER


def _further_adapters(algorithm: AlgorithmConfig) -> int:
    """Those of the reward model and, of a policy that goes on with one, the reference; PPO's critic counts for four."""
    if isinstance(algorithm, PolicyConfig):
        refers = algorithm.tune == "lora" and not isinstance(algorithm, sft.Config)
        return int(refers and algorithm.start_from is not None)
    if not isinstance(algorithm, ppo.Config | GroupConfig):
        return 0
    critic = isinstance(algorithm, ppo.Config) and algorithm.critic == "own"
    return bool(algorithm.reward.step) + bool(algorithm.start_from) + 4 * critic


def _rollout(algorithm: AlgorithmConfig) -> int:
    if isinstance(algorithm, ppo.Config):
        return algorithm.rollout_batch_size
    return algorithm.per_device_train_batch_size * algorithm.passes if isinstance(algorithm, GroupConfig) else 0


def _sampling(
    step: str,
    block: str,
    model: ModelConfig,
    sampler: Any,
    prompt: int | None,
    processes: int | None,
    policies: Sequence[AlgorithmConfig] = (),
) -> Iterator[Loaded]:
    answer = getattr(sampler, "max_new_tokens", None)
    if getattr(sampler, "name", "") != "local" or answer is None or prompt is None:
        return
    tuned = tuple(_tuned(each) for each in policies)
    work = Work(
        kind="sample",
        batch=sampler.batch_size,
        each=1,
        length=prompt + answer,
        answer=answer,
        quantization=model.quantization,
        double=model.double_quantization,
        rank=max((each.lora.r for each in policies), default=0),
        frozen=tuned.count(ADAPTER),
        policies=tuned,
        rollout=sampler.batch_size,
    )
    options = {"batch": f"{block}.batch_size", "quantization": "model.quantization"}
    yield Loaded(step, model, work, options, processes_for(processes))


def _reading(
    model: ModelConfig, processes: int | None, policies: Sequence[AlgorithmConfig], rewards: int, length: int
) -> Loaded:
    """The step that reads text by every checkpoint, with the reward models beside them."""
    tuned = tuple(_tuned(each) for each in policies)
    work = Work(
        kind="sample",
        batch=max(TOKENS, length),
        each=1,
        length=1,
        answer=1,
        quantization=model.quantization,
        double=model.double_quantization,
        rank=max((each.lora.r for each in policies), default=0),
        frozen=tuned.count(ADAPTER) + rewards,
        policies=tuned,
    )
    return Loaded("measure", model, work, {"quantization": "model.quantization"}, processes_for(processes))


def _judging(step: str, judge: JudgeConfig, processes: int | None, path: str = "judge") -> Iterator[Loaded]:
    for at, owner, model in _models(judge, path):
        tokens = getattr(owner, "batch_tokens", JUDGED_TOKENS)
        work = Work(
            kind="read",
            batch=tokens,
            each=1,
            length=1,
            answer=0,
            quantization=model.quantization,
            double=model.double_quantization,
        )
        options = {"quantization": f"{at}.quantization"}
        if hasattr(owner, "batch_tokens"):
            options["batch"] = f"{at.rpartition('.')[0]}.batch_tokens"
        yield Loaded(step, model, work, options, processes_for(processes))


def _models(config: Config, path: str) -> Iterator[tuple[str, Config, ModelConfig]]:
    """The models that stand in a block, with their key paths and the blocks that they stand in."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, ModelConfig):
            yield f"{path}.{name}", config, value
        elif isinstance(value, Config):
            yield from _models(value, f"{path}.{name}")
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                if isinstance(item, Config):
                    yield from _models(item, f"{path}.{name}.{number}")


def _finding(each: Loaded, sizes: Sizes, memory: int, *, gpu: bool) -> Finding:
    share = 1 if gpu else each.processes
    found = peak(sizes, each.work, gpu=gpu)
    total = found.total * share
    level: Level = "error" if total > memory else "warning" if total > CLOSE * memory else "info"
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in found.parts.items() if size > 0.005 * found.total)
    several = f" in each of {share} processes" if share > 1 else ""
    what = f"about {_gb(found.total)} GB{several} of {_gb(memory)} ({parts}; while loading {_gb(found.loading)})"
    if gpu:
        what += "; on a GPU this is a prediction that was not measured"
    remedy = "" if level == "info" else _remedy(each, sizes, memory // share, gpu=gpu)
    if level == "warning":
        what += "; a run may take more than the plan"
    return Finding(level=level, check="memory", where=each.step, what=what, remedy=remedy)


def _remedy(each: Loaded, sizes: Sizes, memory: int, *, gpu: bool) -> str:
    fixed = each.work if "batch" in each.options else replace(each.work, least=each.work.batch)
    changes = nearest(sizes, fixed, int(CLOSE * memory), gpu=gpu)
    if changes is None:
        fewer = f", fewer than {each.processes} processes" if each.processes > 1 and not gpu else ""
        return f"no smaller batch, shorter row or quantisation is enough: take a smaller model{fewer} or more memory"
    told = [_told(each, change) for change in changes if change.option in each.options]
    return f"this fits: {' '.join(told)}" if told else "take more memory"


def _told(each: Loaded, change: Change) -> str:
    value = str(change.value).lower()
    more = ""
    if change.option == "batch" and each.step.startswith("train."):
        more = f" (and as many times more gradient_accumulation_steps: {each.work.batch // int(change.value)} x)"
    return f"{each.options[change.option]}={value}{more}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size < 1e11 else f"{size / 1e9:.0f}"
