"""What can be known before a model loads: does it fit, what of a conversation is trained on, is the data clean.

Two steps of every run. `doctor` comes first, and reads prompts, tokenizer and config.json; `doctor.labels` comes after
the labels, before anything trains. Both leave doctor.json, which the report shows; a finding that is an error stops
the run. Nothing that trains depends on them: a finding changes no weights.

What is left out: the checks (`doctor_data`, `doctor_rendering`, `doctor_memory`) and the command (`cli_doctor`).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from pipeline import demonstrations, store, weights
from pipeline.algorithms.base import NO_ENCODER
from pipeline.algorithms.policy import PolicyConfig, optimizer
from pipeline.algorithms.ppo import Config as PPO
from pipeline.algorithms.ppo_server import ServerError
from pipeline.algorithms.reward_model import Config as RewardModel
from pipeline.algorithms.sft import Config as SFT
from pipeline.algorithms.sft import encode
from pipeline.demonstrations import Demonstration
from pipeline.doctor_data import demonstration_findings, label_findings, length_findings, prompt_findings, text_findings
from pipeline.doctor_memory import memory_findings
from pipeline.doctor_rendering import rendering_findings, system_findings
from pipeline.errors import ModelError, TrainingError
from pipeline.findings import Finding, Level, refuse_errors
from pipeline.generate import read_prompts
from pipeline.measure import texts_of
from pipeline.memory import machine_bytes
from pipeline.models import chat_ids, has_encoder, load_tokenizer, skeleton
from pipeline.plugins import Config
from pipeline.recipe import Recipe, lacking
from pipeline.records import Message, Prompt, Thumb
from pipeline.rounds import files_in
from pipeline.sampling.base import Question, SamplerConfig
from pipeline.worker import Job

VERSION = 4
"""Raised when a change of this file or of the checks changes what is found."""

FILE = "doctor.json"

MEASURED = 500
"""Prompts whose tokens are counted, those with the most characters first: the longest is among them."""

EXAMPLE = Prompt(id="example", messages=(Message(role="user", content="What is asked?"),))
"""Shown where the prompts are not there yet."""


class Examining(Config):
    """The identity of both steps."""

    recipe: Recipe
    order: tuple[str, ...]
    """Of the train steps: what a worker is told has its keys sorted, and a step reads earlier ones."""

    @classmethod
    def of(cls, recipe: Recipe) -> "Examining":
        """Both steps of a recipe."""
        return cls(recipe=recipe, order=tuple(recipe.train))

    @model_validator(mode="before")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        if isinstance(value.get("recipe"), dict):
            steps = value["recipe"]["train"]
            value = {**value, "recipe": {**value["recipe"], "train": {name: steps[name] for name in value["order"]}}}
        return value


def finish(job: Job) -> None:
    """Look at what is there before the first model loads, and write doctor.json.

    Raises:
        RecipeError: something would spoil the run.
    """
    recipe = Examining.model_validate(job.options["config"]).recipe
    _publish(job, before(recipe))


def labels_finish(job: Job) -> None:
    """Look at the labels, and write doctor.json.

    Raises:
        RecipeError: a step that trains would have nothing to learn from.
    """
    recipe = Examining.model_validate(job.options["config"]).recipe
    _publish(job, after_labels(recipe, job.inputs["generate"], job.inputs["label"]))


def before(recipe: Recipe, memory: tuple[int, bool] | None = None) -> list[Finding]:
    """The findings of `doctor`.

    Args:
        memory: bytes, and whether they are a GPU's. None: what this machine has.

    Raises:
        DataError: a file of prompts, demonstrations or text cannot be read.
    """
    trained = trained_on(recipe)
    held_out = read_prompts(recipe.compare.prompts)
    found = prompt_findings(trained, held_out, "generate.prompts.files") if recipe.generate else []
    demonstrated = list(_demonstrations(recipe))
    for name, learned, tested in demonstrated:
        found += demonstration_findings(learned, tested, held_out, f"train.{name}.data")
    shown = {name: learned for name, learned, _ in demonstrated}
    if text := recipe.compare.perplexity:
        taught = {f"train.{name}.data.train": rows for name, rows in shown.items()}
        found += text_findings(texts_of(text, recipe.model), taught, trained)
    found += _lacking(recipe)
    found += _servers(recipe)
    try:
        found += _of_models(recipe, trained, held_out, shown, memory or machine_bytes())
    except ModelError as error:
        where, _, what = str(error).partition(": ")
        remedy = "mend it before the run, which would stop there"
        found.append(Finding(level="error", check="tokenizer", where=where, what=what or str(error), remedy=remedy))
    return found


def _lacking(recipe: Recipe) -> Iterator[Finding]:
    """What this machine lacks for a run, which one that begins here has refused (`recipe.check`), and which a plan for
    another machine does without."""
    for where, lacks in lacking(recipe):
        what, _, remedy = lacks.partition("; ")
        what += ", so a run is refused on this machine"
        yield Finding(level="warning", check="machine", where=where, what=what, remedy=remedy)


def trained_on(recipe: Recipe) -> list[Prompt]:
    """The prompts of every round, each of them once."""
    if recipe.generate is None:
        return []
    prompts = recipe.generate.prompts
    files = dict.fromkeys(
        files_in(number, recipe.rounds, prompts.files)
        for number in range(1, min(recipe.rounds, len(prompts.files)) + 1)
    )
    return [prompt for some in files for prompt in read_prompts(prompts.model_copy(update={"files": some}))]


def after_labels(recipe: Recipe, generated: Path, labelled: Path) -> list[Finding]:
    """The findings of `doctor.labels`, of the folders of two steps."""
    summary = store.read_json(labelled / "summary.json")
    thumbs = labelled / "thumbs.jsonl"
    good = [thumb.good for thumb in store.read_jsonl(thumbs, Thumb)] if thumbs.exists() else []
    found = label_findings(summary, (sum(good), len(good) - sum(good)), recipe.train)
    if recipe.annotations is not None:
        trained = list(store.read_jsonl(generated / "prompts.jsonl", Prompt))
        found += prompt_findings(trained, read_prompts(recipe.compare.prompts), "annotations.files")
    return found


def _demonstrations(recipe: Recipe) -> Iterator[tuple[str, list[Demonstration], list[Demonstration]]]:
    """Of each step that has files of them: its name, what is learned, and what the loss is measured on."""
    for name, algorithm in recipe.train.items():
        if isinstance(algorithm, SFT) and (data := algorithm.data):
            yield name, *demonstrations.of_files(data)


def _of_models(
    recipe: Recipe,
    trained: Sequence[Prompt],
    held_out: Sequence[Prompt],
    shown: Mapping[str, Sequence[Demonstration]],
    memory: tuple[int, bool],
) -> Iterator[Finding]:
    prompts: dict[str, int] = {}
    rendered = None
    if has_encoder(recipe.model):
        yield from _untrainable(recipe)
    else:
        tokenizer = load_tokenizer(recipe.model)
        yield from rendering_findings(tokenizer, trained[0] if trained else EXAMPLE)
        yield from system_findings(tokenizer, [*trained, *held_out])
        lengths = {"train": _lengths(tokenizer, trained), "heldout": _lengths(tokenizer, held_out)}
        yield from length_findings(lengths["train"], len(trained), recipe.train)
        rendered = len(chat_ids(tokenizer, EXAMPLE.messages))
        prompts = {name: max(found) for name, found in lengths.items() if found}
        prompts |= {f"train.{name}": longest(tokenizer, found) for name, found in shown.items()}
    yield from _samplers(recipe, rendered, prompts)
    yield from _unknown_names(recipe, gpu=memory[1])
    yield from _reward_models(recipe)
    yield from memory_findings(recipe, prompts, memory[0], gpu=memory[1])


def _untrainable(recipe: Recipe) -> Iterator[Finding]:
    """Steps that would stop at an encoder-decoder, when the run is half done."""
    for name, algorithm in recipe.train.items():
        if not algorithm.ENCODER_DECODERS and getattr(algorithm, "base", None) is None:
            what = f"{recipe.model.base} {NO_ENCODER.partition(';')[0]}"
            remedy = "leave the step out, or name a causal model (a ...ForCausalLM) as model.base"
            yield Finding(level="error", check="model", where=f"train.{name}", what=what, remedy=remedy)


def _unknown_names(recipe: Recipe, *, gpu: bool) -> Iterator[Finding]:
    """Options whose values are names of the base's modules or of an optimizer, and name none."""
    for name, algorithm in recipe.train.items():
        if not isinstance(algorithm, PolicyConfig):
            continue
        try:
            optimizer(algorithm.optim, "cuda" if gpu else "cpu")
            if algorithm.layers:
                weights.choose(skeleton(recipe.model), algorithm.layers)
        except (ModelError, TrainingError) as error:
            option, _, what = str(error).partition(": ")
            remedy = "name one that there is"
            yield Finding(level="error", check="model", where=f"train.{name}.{option}", what=what, remedy=remedy)


def _lengths(tokenizer: Any, prompts: Sequence[Prompt]) -> list[int]:
    longest = sorted(prompts, key=lambda each: -sum(len(turn.content) for turn in each.messages))[:MEASURED]
    return [len(chat_ids(tokenizer, prompt.messages)) for prompt in longest]


def longest(tokenizer: Any, shown: Sequence[Demonstration]) -> int:
    """Tokens of the longest example that SFT makes of demonstrations."""

    def characters(each: Demonstration) -> int:
        return len(each.text or "") + sum(len(turn.content) for turn in each.messages)

    longest = sorted(shown, key=characters, reverse=True)[:MEASURED]
    examples = [each for one in longest for each in encode(tokenizer, one, assistant_only=False)]
    return max(len(each.ids) for each in examples)


def _reward_models(recipe: Recipe) -> Iterator[Finding]:
    """What a reward model on a base of its own makes of the policy's answers."""
    for name, algorithm in recipe.train.items():
        if not isinstance(algorithm, RewardModel) or algorithm.base in (None, recipe.model):
            continue
        assert algorithm.base is not None
        own = load_tokenizer(algorithm.base, chat=False)
        same = own.get_vocab() == load_tokenizer(recipe.model).get_vocab()
        what = f"{algorithm.base.base} has {'the same' if same else 'another'} vocabulary as the policy's base"
        what += "; answers reach it as text, which its own tokenizer encodes"
        yield Finding(level="info", check="tokenizer", where=f"train.{name}.base", what=what)


def _samplers(recipe: Recipe, rendered: int | None, longest: Mapping[str, int]) -> Iterator[Finding]:
    """What the samplers have to say for themselves.

    Args:
        rendered: tokens of EXAMPLE. None: not known.
        longest: tokens of the longest prompt, of those to train on and of those held out.
    """
    samplers: dict[str, SamplerConfig] = {}
    if recipe.generate is not None:
        samplers["generate"] = recipe.generate.sampler
    if recipe.compare.sampler is not None:
        samplers["compare"] = recipe.compare.sampler
    for block, sampler in samplers.items():
        compares = block == "compare" or recipe.compare.sampler is None
        sets = [name for name, asks in (("train", block == "generate"), ("heldout", compares)) if asks]
        known = [longest[name] for name in sets if name in longest]
        question = Question(
            where=f"{block}.sampler",
            messages=EXAMPLE.messages,
            rendered=rendered,
            longest=max(known, default=None),
            adapters=compares or recipe.rounds > 1 or (recipe.generate is not None and bool(recipe.generate.policy)),
            reference=compares and sampler.plain,
            later=block == "compare",
        )
        if not any(sampler.lacks()):  # or it could not be asked, and `_lacking` says why
            yield from sampler.findings(question)
        if compares and not sampler.plain:
            what = "answers are not drawn from a policy's own distribution, so their KL to the base will not be told"
            remedy = f"for KL set {block}.sampler.temperature=1 (and top_p=1, top_k=0), or leave it if that is meant"
            yield Finding(level="info", check="sampler", where=f"{block}.sampler", what=what, remedy=remedy)


def _servers(recipe: Recipe) -> Iterator[Finding]:
    """Whether the servers that sample for a train step can. One that does not reply may not be started yet."""
    for name, algorithm in recipe.train.items():
        if not isinstance(algorithm, PPO) or algorithm.rollouts is None or any(algorithm.lacks()):
            continue
        where = f"train.{name}.rollouts"
        try:
            server = algorithm.server(f"train.{name}", Path())
            assert server is not None
            with contextlib.closing(server):
                server.check(algorithm.max_length, algorithm.temperature)
        except ServerError as error:
            level: Level = "warning" if error.away else "error"
            yield Finding(level=level, check="server", where=where, what=error.what, remedy=error.remedy)
        else:
            what = "the server samples, and takes adapters while it runs"
            yield Finding(level="info", check="server", where=where, what=what)


def _publish(job: Job, found: Sequence[Finding]) -> None:
    store.write_json(job.out / FILE, [each.model_dump(mode="json") for each in found])
    counts = {level: sum(each.level == level for each in found) for level in ("error", "warning", "info")}
    store.write_json(job.out / "summary.json", counts)
    for each in found:
        if each.level == "warning":
            print(f"{job.step}: {each.where}: {each.what}; {each.remedy}", flush=True)
    refuse_errors(found)


def read(folder: Path) -> list[Finding]:
    """The findings that one of the two steps left."""
    return [Finding.model_validate(each) for each in store.read_json(folder / FILE)]
