"""The recipe: one experiment as one YAML file. What may be in it, how it is read, and how its mistakes are told.

    recipe = load("recipes/rlaif.yaml", ["train.dpo.beta=0.05", "judge=length"])

A recipe may say `extends: base.yaml` and then only what differs; an override `key.path=value` is one more recipe on
top, of a single line. Blocks merge key by key, lists replace, and another `name` replaces its whole block, so that no
option of the old judge lingers. All mistakes are raised together, each by its key path, before any model loads.

What is left out, on purpose: variables, reading of the environment, and anything else that would make the meaning of
a recipe depend on more than its files. `${HOME}` is six characters and `_target_` an unknown option. Nothing here
imports torch, and no plugin is imported that the recipe does not name.
"""

import contextlib
import difflib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from judges.base import AnyJudge, JudgeConfig
from judges.exam import ExamConfig, GoldPair
from pipeline import rounds as iterated
from pipeline.algorithms.base import AlgorithmConfig, Need
from pipeline.errors import RecipeError
from pipeline.importers.base import Source
from pipeline.launch import HERE, LaunchConfig
from pipeline.models import ModelConfig
from pipeline.plugins import FOLDERS, Config, Files, Plugin, config_class, names
from pipeline.recipe_yaml import Dumper, parse, text_of
from pipeline.sampling.base import SamplerConfig
from pipeline.store import read_jsonl

BASE = "base"
"""What the policy is called before any training, where checkpoints are named."""

RECIPES, PRESETS = Path("recipes"), "judges"
"""Where recipes are, and the folder of judges' presets beside them."""

B = TypeVar("B", bound=Config)

# ---------------------------------------------------------------- types

AnySampler = Annotated[SamplerConfig, Plugin("sampler")]
AnyAlgorithm = Annotated[AlgorithmConfig, Plugin("algorithm")]


def _asked_fairly(judge: JudgeConfig) -> JudgeConfig:
    # One order alone would label by place: the built-in model prefers the first answer every time.
    if not judge.order_free:
        wrapped = f"{{name: both_orders, of: {{name: {judge.name}, ...}}}}"
        raise ValueError(f"{judge.name} sees two answers in an order, and may prefer a place; write {wrapped}")
    return judge


FairJudge = Annotated[AnyJudge, AfterValidator(_asked_fairly)]
"""A judge whose verdict does not depend on which answer it is shown first."""


def _step_name(name: str) -> str:
    # It becomes a folder, a column of the report and a part of a key path.
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("a step's name needs to be lower-case letters, digits and _, a letter first")
    if name == BASE:
        raise ValueError(f"{BASE!r} is the policy before training; call the step something else")
    return name


class PromptsConfig(Config):
    """Where prompts come from."""

    files: Files
    """JSONL files of prompts, read in this order; a single path is enough. Relative to the current directory."""
    limit: int | None = Field(default=None, ge=1)
    """The first so many prompts of all files together. None: all."""
    system: str | None = None
    """The system message of prompts that bring none. None: what the model's chat template says by itself."""


class GenerateConfig(Config):
    """Stage 1: the policy answers every training prompt several times, and its answers are paired."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"processes"})

    prompts: PromptsConfig
    """What to answer."""
    sampler: AnySampler
    """How answers are drawn from the policy."""
    policy: str | None = None
    """The train step whose policy answers; it comes first then, and learns from data of its own. None: the base."""
    candidates: int = Field(default=4, ge=2)
    """Answers to each prompt."""
    pairing: Literal["best_worst", "random", "all"] = "best_worst"
    """best_worst: the judge sees every pair of a prompt's answers, and training gets the best against the worst.
    random: disjoint random pairs. all: every pair, and each is a training example."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that generate side by side. None: chosen for the machine."""

    def identity(self) -> dict[str, Any]:
        """The base goes without saying, as it did when there was no other: what was made of it is found again."""
        return _less(super().identity(), set() if self.policy else {"policy"})


class AnnotationsConfig(Source):
    """In the place of `generate` and `judge`: pairs and labels from people's votes."""

    limit: int | None = Field(default=None, ge=1)
    """The first so many prompts of all files together. None: all."""
    held_out: float = Field(default=0.2, ge=0, le=0.5)
    """Share of the prompts whose pairs nobody trains on: the comparing judges are checked against people on them."""


class LabelConfig(Config):
    """Stage 2: the judge says which answer of each pair is better."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"processes"})

    min_confidence: float = Field(default=0.5, ge=0.5, lt=1)
    """Verdicts with a lower probability for their winner stay in verdicts.jsonl and are not trained on."""
    max_abstained: float = Field(default=0.2, ge=0, le=1)
    """Share of pairs that the judge may leave open. More stops the run, with the reasons counted."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that judge side by side. None: chosen for the machine."""


class PerplexityConfig(Config):
    """Text that nobody was trained on, whose perplexity is measured by every checkpoint."""

    files: Files
    """Conversations or plain texts, as SFT reads them (`pipeline.demonstrations`); a single path is enough."""
    dataset_text_field: str = "text"
    """The column of plain texts."""
    limit: int | None = Field(default=None, ge=1)
    """The first so many rows of all files together. None: all."""
    max_length: int = Field(default=1024, ge=2)
    """Tokens of a row; what follows is not read."""


class CompareConfig(Config):
    """Stage 4: checkpoints answer held-out prompts, and judges compare the answers."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"processes"})

    prompts: PromptsConfig
    """Held-out prompts; no file of them may be one that was trained on."""
    checkpoints: tuple[str, ...] | None = Field(default=None, min_length=2)
    """Names of train steps that make a policy, and `base` for the one before training. None: base and all of them."""
    judges: tuple[FairJudge, ...] = Field(min_length=1)
    """Who compares. The first is the one whose result the report leads with."""
    sampler: AnySampler | None = None
    """How answers are drawn. None: as in `generate`."""
    samples: int = Field(default=1, ge=1)
    """Answers to each prompt by each checkpoint."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of the intervals."""
    perplexity: PerplexityConfig | None = None
    """Text on which perplexity is measured. None: it is not."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that generate and judge side by side. None: chosen for the machine."""


class Recipe(Config):
    """One experiment: from prompts to which of its train steps made the policy better."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"launch", "budget_usd", "allow_inexact_resume"})
    ONE_OF: ClassVar[frozenset[str]] = frozenset({"generate", "annotations"})

    seed: int = Field(default=1, ge=0, lt=2**63)
    """Every random choice is a function of this and of what it is about, never of time or order."""
    model: ModelConfig
    """The policy before training, and how it is loaded and adapted."""
    annotations: AnnotationsConfig | None = None
    """People's votes, which bring pairs and labels: there is neither `generate` nor `judge` then."""
    generate: GenerateConfig | None = Field(default=None, validate_default=True)
    """Stage 1: answers, in pairs. Neither it nor `judge` is needed where every train step brings data of its own."""
    judge: FairJudge | None = Field(default=None, validate_default=True)
    """Who labels. May also be among `compare.judges`; the report then says that it judged its own pupils."""
    exam: ExamConfig = ExamConfig()
    """What the judge must show before it labels."""
    label: LabelConfig = LabelConfig()
    """Stage 2: which verdicts of the judge count."""
    launch: LaunchConfig = HERE
    """The processes in which each train step runs, unless it says otherwise. `here`: one, on this machine."""
    train: dict[Annotated[str, AfterValidator(_step_name)], AnyAlgorithm]
    """Steps by name, in the order they run. A step's algorithm is its name, unless the block has another `name`."""
    rounds: int = Field(default=1, ge=1)
    """How often to generate, label and train: from the second round on with the policy of the round before (see
    `pipeline.rounds`). Of several prompt files each round has the next; a single one is answered with other seeds."""
    carry: str | None = Field(default=None, validate_default=True)
    """The train step whose policy the next round goes on with."""
    compare: CompareConfig
    """Stage 4: which checkpoint is better, on prompts that none was trained on."""
    budget_usd: float | None = Field(default=None, ge=0)
    """What all judges of this run together may be charged, in US dollars. The call that would pass it is not made:
    the run stops, and goes on when this is raised. None: no limit."""
    allow_inexact_resume: bool = False
    """Let a train step that was killed go on with other library versions, on another device, with other threads or
    another number of processes. What comes out is not what an uninterrupted run gives, and the report says so."""

    @field_validator("generate", "judge", mode="after")
    @classmethod
    def _not_beside_votes(cls, block: Any, info: ValidationInfo) -> Any:
        if block is not None and info.data.get("annotations") is not None:
            raise PydanticCustomError("recipe", "annotations has pairs and their labels; leave one of the two out", {})
        return block

    @field_validator("judge", mode="after")
    @classmethod
    def _has_answers_to_judge(cls, judge: JudgeConfig | None, info: ValidationInfo) -> JudgeConfig | None:
        if "generate" in info.data and info.data.get("annotations") is None:
            if judge is None and info.data["generate"] is not None:
                remedy = f"one of: {', '.join(names('judge'))}"
                raise PydanticCustomError("recipe", "missing; {remedy}", {"remedy": remedy})
            if judge is not None and info.data["generate"] is None:
                raise PydanticCustomError(
                    "recipe", "there is no generate block, whose answers it could label; add one", {}
                )
        return judge

    @field_validator("train", mode="before")
    @classmethod
    def _steps_are_named_by_their_key(cls, steps: Any) -> Any:
        return _named(steps)

    @field_validator("train", mode="after")
    @classmethod
    def _steps_have_what_they_read(
        cls, steps: dict[str, AnyAlgorithm], info: ValidationInfo
    ) -> dict[str, AnyAlgorithm]:
        mistakes = [*_wrong_needs(steps), *_wrong_starts(steps)]
        if info.data.get("generate", True) is None and info.data.get("annotations", True) is None:
            mistakes += _without_answers(steps)
        if "model" in info.data:
            mistakes += _wrong_tuning(steps, info.data["model"])
        if "launch" in info.data:
            mistakes += _wrong_launches(steps, info.data["launch"], info.data.get("model"))
        if mistakes:
            raise ValidationError.from_exception_data("train", mistakes)
        return steps

    @field_validator("train", mode="after")
    @classmethod
    def _policy_is_there_before_it_answers(
        cls, steps: dict[str, AnyAlgorithm], info: ValidationInfo
    ) -> dict[str, AnyAlgorithm]:
        generate = info.data.get("generate")
        mistakes = list(_wrong_policy(generate.policy, steps)) if generate and generate.policy else []
        if generate and not mistakes:
            mistakes = list(_unserved(generate.sampler, [generate.policy] if generate.policy else [], steps))
        if mistakes:
            raise ValidationError.from_exception_data("train", mistakes)
        return steps

    @field_validator("rounds", mode="after")
    @classmethod
    def _has_something_to_do_again(cls, rounds: int, info: ValidationInfo) -> int:
        if rounds > 1 and "generate" in info.data and info.data["generate"] is None:
            what = "each round after the first answers prompts and has the answers judged"
            if info.data.get("annotations") is not None:
                what += ", and people's votes are there once"
            raise PydanticCustomError("recipe", "{what}; set it to 1, or add generate and judge", {"what": what})
        return rounds

    @field_validator("carry", mode="after")
    @classmethod
    def _is_gone_on_with(cls, carry: str | None, info: ValidationInfo) -> str | None:
        if "train" in info.data:
            steps, generate = info.data["train"], info.data.get("generate")
            mistakes = list(_wrong_carry(carry, steps, info.data.get("rounds", 1)))
            if carry and carry in steps and generate and (why := _not_served(generate.sampler, carry, steps)):
                mistakes.append(why)
            if mistakes:
                raise PydanticCustomError("recipe", "{what}", {"what": "; and ".join(mistakes)})
        return carry

    def identity(self) -> dict[str, Any]:
        """A single round goes without saying, as it did when there were no others."""
        return _less(super().identity(), {"rounds", "carry"} if self.rounds == 1 else set())

    @field_validator("compare", mode="after")
    @classmethod
    def _agrees_with_the_rest(cls, compare: CompareConfig, info: ValidationInfo) -> CompareConfig:
        # The blocks before this one are in info.data if they are right, so this is told along with other mistakes.
        mistakes: list[InitErrorDetails] = []
        if "train" in info.data:
            mistakes += _wrong_checkpoints(compare, info.data["train"])
            mistakes += _learned(compare, info.data["train"])
            mistakes += _unserved_checkpoints(compare, info.data.get("generate"), info.data["train"])
        if info.data.get("generate") is not None:
            mistakes += _trained_on(compare, info.data["generate"])
        if info.data.get("generate", True) is None and compare.sampler is None:
            mistakes.append(_mistake(("sampler",), "missing; there is no generate.sampler to take"))
        if mistakes:
            raise ValidationError.from_exception_data("compare", mistakes)
        return compare


def policies(steps: Mapping[str, AlgorithmConfig]) -> list[str]:
    """The train steps that make a policy, which can be compared."""
    return [name for name, step in steps.items() if step.MAKES == "policy"]


def _wrong_needs(steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    names = list(steps)
    for index, (name, algorithm) in enumerate(steps.items()):
        for need in algorithm.needs():
            earlier = [each for each in names[:index] if need.makes == steps[each].MAKES]
            remedy = _hint(need.step, earlier) if earlier else f"; put a step that makes a {need.makes} before {name!r}"
            if need.step in names[index:]:
                problem = f"{need.step!r} does not come before {name!r}; put it first under train"
            elif need.step not in names:
                problem = f"no earlier step is called {need.step!r}{remedy}"
            elif need.step not in earlier:
                problem = f"{need.step!r} makes a {steps[need.step].MAKES}, and a {need.makes} is needed{remedy}"
            else:
                continue
            yield _mistake((name, *need.option.split(".")), problem)


def _without_answers(steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    learned = {"label": "labels", "generate": "prompts"}
    for name, algorithm in steps.items():
        read = [learned[stage] for stage in algorithm.reads()]
        if read:
            what = f"learns from {' and '.join(read)}, and nothing makes them; add generate and judge, or annotations"
            yield _mistake((name,), what)


def _wrong_tuning(steps: Mapping[str, AlgorithmConfig], model: ModelConfig) -> Iterator[InitErrorDetails]:
    for name, algorithm in steps.items():
        if algorithm.trains_base() and model.quantization != "none":
            what = "trains weights themselves, which cannot be quantised; set model.quantization to none "
            yield _mistake((name, "tune"), f"{what}(it is {model.quantization}), or tune to lora")


SHAPE = ("r", "lora_alpha", "target_modules", "use_dora")
"""What an adapter that is gone on with has from the step before."""


def _wrong_starts(steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    """Starts whose kind of weights a step cannot go on with, or whose adapter is of another shape than its own."""
    for name, algorithm in steps.items():
        for need in algorithm.needs():
            start = steps.get(need.step)
            if start is not None and need.makes == start.MAKES == "policy":
                wrong = _wrong_start(steps, algorithm, need)
                if wrong:
                    yield _mistake((name, *wrong[0].split(".")), wrong[1])


def _wrong_start(
    steps: Mapping[str, AlgorithmConfig], algorithm: AlgorithmConfig, need: Need
) -> tuple[str, str] | None:
    """The option and what is wrong with it."""
    start = steps[need.step]
    if need.adapter and _changes_base(steps, need.step):
        what = (
            f"{need.step!r} has trained weights of the base itself, and {algorithm.name} goes on with an adapter alone"
        )
        return need.option, f"{what}; start from a step with tune: lora"
    if algorithm.trains_base() and not start.trains_base():
        what = f"{need.step!r} has trained an adapter, which is not gone on with by training the base"
        return need.option, f"{what}; set tune to lora here, or in {need.step} to what it is here"
    if algorithm.trains_base() or start.trains_base():
        return None
    for each in SHAPE:
        own, theirs = getattr(algorithm.lora, each), getattr(start.lora, each)
        if own != theirs:
            what = f"{own!r} found, and the adapter of {need.step!r}, which it goes on with, has {theirs!r}"
            return f"lora.{each}", f"{what}; make them the same"
    return None


def _changes_base(steps: Mapping[str, AlgorithmConfig], name: str) -> bool:
    """Whether a step's policy has other weights than the base below its adapter, if it has one."""
    earlier = list(steps)[: list(steps).index(name)]
    starts = [need.step for need in steps[name].needs() if need.makes == "policy" and need.step in earlier]
    return steps[name].trains_base() or any(_changes_base(steps, start) for start in starts)


def _wrong_launches(
    steps: Mapping[str, AlgorithmConfig], launch: LaunchConfig, model: ModelConfig | None
) -> Iterator[InitErrorDetails]:
    for name, algorithm in steps.items():
        own = algorithm.launch or launch
        for problem in algorithm.refusals(own):
            yield _mistake((name,), problem)
        base = getattr(algorithm, "base", None) or model
        if own.zero == 3 and base is not None and base.quantization == "int8":
            problem = "launch.zero=3 cannot divide weights in int8; set model.quantization to nf4 or none, or zero to 2"
            yield _mistake((name,), problem)


def _wrong_policy(policy: str, steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    """What is wrong with the train step whose policy should answer the prompts."""
    if policy not in steps:
        yield _mistake((), f"no step is called {policy!r}, as generate.policy has it{_near(policy, policies(steps))}")
    elif steps[policy].MAKES != "policy":
        yield _mistake((policy,), f"makes a {steps[policy].MAKES}, and generate.policy names it as who answers")
    else:
        for name in iterated.before_generate(steps, policy):
            if steps[name].reads():
                read = " and ".join(steps[name].reads())
                yield _mistake(
                    (name,), f"learns from {read}, which come of generate, and generate.policy needs it first"
                )


def _unserved(
    sampler: SamplerConfig, names: Sequence[str], steps: Mapping[str, AlgorithmConfig]
) -> Iterator[InitErrorDetails]:
    """The train steps among these whose policy the sampler's servers cannot be given."""
    for name in names:
        if why := _not_served(sampler, name, steps):
            yield _mistake((name,), why)


def _unserved_checkpoints(
    compare: CompareConfig, generate: GenerateConfig | None, steps: Mapping[str, AlgorithmConfig]
) -> Iterator[InitErrorDetails]:
    sampler = compare.sampler or (generate and generate.sampler)
    for name in compare.checkpoints or policies(steps):
        if sampler and name in steps and (why := _not_served(sampler, name, steps)):
            yield _mistake(("sampler",), why)


def _not_served(sampler: SamplerConfig, name: str, steps: Mapping[str, AlgorithmConfig]) -> str | None:
    if not sampler.REMOTE:
        return None
    remedy = f"sample with {{name: local}}, or leave {name!r} out"
    if _changes_base(steps, name):
        return f"{sampler.name}'s servers take adapters, and {name!r} trains weights of the base itself; {remedy}"
    if (lora := getattr(steps[name], "lora", None)) and lora.use_dora:
        return f"{sampler.name}'s servers take plain LoRA, and {name!r} trains a DoRA; {remedy}"
    return None


def _wrong_carry(carry: str | None, steps: Mapping[str, AlgorithmConfig], rounds: int) -> Iterator[str]:
    """What keeps a later round from going on with this step's policy, a sentence each."""
    again = iterated.repeated(steps)
    known = [name for name in policies(steps) if name in again]
    if carry is None:
        if rounds > 1:
            yield f"missing; name the train step whose policy the next round goes on with: {', '.join(known) or 'none'}"
        return
    if carry not in steps:
        yield f"no step is called {carry!r}{_hint(carry, known)}"
    elif steps[carry].MAKES != "policy":
        yield f"{carry!r} makes a {steps[carry].MAKES}, which answers no prompts; those that do: {', '.join(known)}"
    elif carry not in again:
        yield f"{carry!r} learns from nothing that another round brings; those that do: {', '.join(known)}"
    if rounds == 1:
        return
    for name in again:
        algorithm = steps[name]
        if iterated.LATER.match(name):
            yield f"{name!r} is called as a policy of a later round is; call it something else"
        if not iterated.goes_on(algorithm, again):
            continue
        if "start_from" not in type(algorithm).model_fields:
            yield f"{name!r} ({algorithm.name}) cannot start from another policy, and so has no second round"
        elif carry in known:
            try:
                later = iterated.in_later(algorithm, carry, again)
            except ValidationError as error:
                told = "; ".join(problem for _, problem, _ in _mistakes(error.errors(), type(algorithm)))
                yield f"{name!r} cannot go on with {carry!r}: {told}"
            else:
                starts = (need for need in later.needs() if need.option == "start_from")
                for wrong in filter(None, (_wrong_start(steps, later, need) for need in starts)):
                    yield f"train.{name}.{wrong[0]}: {wrong[1]}"


def _wrong_checkpoints(compare: CompareConfig, steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    known = [BASE, *policies(steps)]
    named = compare.checkpoints or ()
    for index, name in enumerate(named):
        if name in steps and name not in known:
            yield _mistake(("checkpoints", index), f"{name!r} makes no policy; those that do: {', '.join(known)}")
        elif name not in known:
            yield _mistake(("checkpoints", index), f"no step is called {name!r}{_hint(name, known)}")
        elif name in named[:index]:
            yield _mistake(("checkpoints", index), f"{name!r} is there twice")
    if len(known) == 1:
        yield _mistake(("checkpoints",), "no step makes a policy; add one that does, such as dpo, under train")


def _trained_on(compare: CompareConfig, generate: GenerateConfig) -> Iterator[InitErrorDetails]:
    trained_on = {os.path.realpath(file) for file in generate.prompts.files}
    for index, file in enumerate(compare.prompts.files):
        if os.path.realpath(file) in trained_on:
            what = f"{str(file)!r} is in generate.prompts too; comparing needs prompts that were not trained on"
            yield _mistake(("prompts", "files", index), what)


def _learned(compare: CompareConfig, steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    """Files of text for perplexity that a train step learns from; what it measures its loss on is not learned."""
    learned = {
        os.path.realpath(file): name
        for name, algorithm in steps.items()
        for option, files in algorithm.files().items()
        if option != "data.test"
        for file in files
    }
    for index, file in enumerate(compare.perplexity.files if compare.perplexity else ()):
        if os.path.realpath(file) in learned:
            what = f"{str(file)!r} is what train.{learned[os.path.realpath(file)]} learns; name text that none did"
            yield _mistake(("perplexity", "files", index), what)


def _less(identity: dict[str, Any], unsaid: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in unsaid}


def _mistake(path: tuple[str | int, ...], what: str) -> InitErrorDetails:
    return {"type": PydanticCustomError("recipe", "{what}", {"what": what}), "loc": path, "input": None}


def _named(steps: Any) -> Any:
    """The block `train` with every step's algorithm written out: `dpo: {beta: 0.1}` has the name dpo."""
    if not isinstance(steps, Mapping):
        return steps
    blocks = {step: {} if block is None else block for step, block in steps.items()}
    named = {step: {"name": step, **block} if isinstance(block, Mapping) else block for step, block in blocks.items()}
    return {step: _shaped(block, named) if isinstance(block, Mapping) else block for step, block in named.items()}


def _shaped(block: Mapping[str, Any], steps: Mapping[str, Any]) -> Mapping[str, Any]:
    """A block that goes on with another's adapter, with the shape of that one where it says nothing of it."""
    start = steps.get(block["start_from"]) if isinstance(block.get("start_from"), str) else None
    theirs = start.get("lora") if isinstance(start, Mapping) else None
    own = block.get("lora", {})
    if not isinstance(theirs, Mapping) or not isinstance(own, Mapping):
        return block
    return {**block, "lora": {**{name: theirs[name] for name in SHAPE if name in theirs}, **own}}


# ---------------------------------------------------------------- what others use


def load(path: str | Path, overrides: Sequence[str] = (), judge: str | None = None) -> Recipe:
    """The recipe in a file, with `key.path=value` overrides applied in order.

    Args:
        judge: who labels, before any override: a preset (`judges/<name>.yaml` beside the recipe or in `recipes/`, a
            recipe that says little but its judge), or else a judge by its name.

    Raises:
        RecipeError: with every mistake of the files, the overrides and the options, one a line.
    """
    mistakes: list[str] = []
    tree: dict[str, Any] | None = None
    try:
        tree = _read(Path(path))
    except RecipeError as error:
        mistakes.append(str(error))
    if judge is not None:
        try:
            chosen = _preset(judge, [Path(path).parent / PRESETS, RECIPES / PRESETS])
            tree = None if tree is None else _over(tree, chosen)
        except RecipeError as error:
            mistakes.append(str(error))
    return read(Recipe, tree, overrides, f"{path}: ", mistakes)


def read(
    kind: type[B], tree: dict[str, Any] | None, overrides: Sequence[str], where: str, mistakes: Sequence[str] = ()
) -> B:
    """A block of options from what YAML gives, with `key.path=value` overrides applied in order.

    Args:
        tree: None: it could not be read, and the overrides are looked at by themselves.
        where: what the message begins with.
        mistakes: those that were found before.

    Raises:
        RecipeError: with every mistake, one a line.
    """
    mistakes = list(mistakes)
    for override in overrides:
        try:
            tree = _override(tree, override, kind)
        except RecipeError as error:
            mistakes.append(str(error))
    block = None
    if tree is not None:
        try:
            block = kind.model_validate(tree)
        except ValidationError as error:
            mistakes += explain(error, kind)
    if block is None or mistakes:
        raise _all_of(mistakes, where)
    return block


def dump(recipe: Config) -> str:
    """The recipe as YAML with every default written out. Loading it gives an equal recipe."""
    tree = recipe.model_dump(mode="json")
    text: str = yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def schema() -> dict[str, Any]:
    """The JSON schema of a whole recipe, one that needs no `extends`. A plugin's block is any that its folder has."""
    plugins = {kind: [config_class(kind, name) for name in names(kind)] for kind in FOLDERS}
    everything: list[type[Config]] = [Recipe, *(each for configs in plugins.values() for each in configs)]
    references, document = models_json_schema([(each, "validation") for each in everything])
    for kind, configs in plugins.items():
        blocks = [references[each, "validation"] for each in configs]
        document["$defs"][kind] = {"anyOf": [{"enum": names(kind)}, *blocks]}
    whole: dict[str, Any] = _with_choices({**document, **references[Recipe, "validation"], "title": "prefloop recipe"})
    return whole


def check_files(recipe: Recipe) -> None:
    """Looks for the data files, which `load` does not, so that a recipe can be read away from its data; reads gold.

    Raises:
        RecipeError: naming every one that is missing.
        DataError: a row of the gold file cannot be read.
    """
    files = {
        "annotations.files": recipe.annotations.files if recipe.annotations else (),
        "generate.prompts.files": recipe.generate.prompts.files if recipe.generate else (),
        **{
            f"train.{name}.{option}": files
            for name, step in recipe.train.items()
            for option, files in step.files().items()
        },
        "compare.prompts.files": recipe.compare.prompts.files,
    }
    mistakes = [
        f"{option}: there is no file {file.absolute()}"
        for option, named in files.items()
        for file in named
        if not os.path.isfile(file)
    ]
    gold = recipe.exam.gold
    if gold is not None and not os.path.isfile(gold):
        mistakes.append(f"exam.gold: there is no file {gold.absolute()}")
    if mistakes:
        raise _all_of(mistakes, "")
    if gold is not None:
        for _ in read_jsonl(gold, GoldPair):
            pass


def check_judges(recipe: Recipe) -> None:
    """Asks every judge and sampler what it lacks, such as a key, so that a run does not stop for it half-way.

    Raises:
        RecipeError: naming everything that is missing.
    """
    judges = {} if recipe.judge is None else {"judge": recipe.judge}
    samplers = {} if recipe.generate is None else {"generate.sampler": recipe.generate.sampler}
    check_asked({**samplers, **judges}, recipe.compare)


def check_asked(others: Mapping[str, JudgeConfig | SamplerConfig], compare: CompareConfig) -> None:
    """`check_judges` of those that compare, and of others by their key paths."""
    asked: dict[str, JudgeConfig | SamplerConfig] = dict(others)
    if compare.sampler is not None:
        asked["compare.sampler"] = compare.sampler
    asked |= {f"compare.judges.{n}": each for n, each in enumerate(compare.judges)}
    mistakes = [f"{path}: {lacking}" for path, each in asked.items() for lacking in each.lacks()]
    if mistakes:
        raise _all_of(mistakes, "")


def check_launch(recipe: Recipe) -> None:
    """Looks whether DeepSpeed is there where a train step is to use it.

    Raises:
        RecipeError: it is not.
    """
    asking = [name for name, step in recipe.train.items() if (step.launch or recipe.launch).zero]
    if asking and importlib.util.find_spec("deepspeed") is None:
        raise RecipeError(
            f"train.{asking[0]}: launch.zero needs DeepSpeed, which is not installed; pip install 'prefloop[gpu]', "
            "or set launch.zero to 0"
        )


def check(recipe: Recipe, *, starts: bool) -> None:
    """What is looked at before a recipe's steps are planned: its files, and where it `starts`, judges and launch.

    Raises:
        RecipeError: as `check_judges` and `check_launch`.
        DataError: as `check_files`.
    """
    check_files(recipe)
    if starts:
        check_judges(recipe)
        check_launch(recipe)


def explain(error: ValidationError, kind: type[Config] = Recipe) -> list[str]:
    """Each mistake that pydantic found in a recipe as one line: full key path, what was found, what is allowed."""
    lines: dict[str, list[str]] = {}
    for path, problem, remedy in _mistakes(error.errors(), kind):
        remedies = lines.setdefault(f"{path}: {problem}" if path else problem, [])
        if remedy not in remedies:  # the alternatives of one option are separate errors to pydantic
            remedies.append(remedy)
    return [problem + " or ".join(remedies) for problem, remedies in lines.items()]


def _all_of(mistakes: Sequence[str], where: str) -> RecipeError:
    count = f"{len(mistakes)} mistake" + ("s" if len(mistakes) > 1 else "")
    return RecipeError("\n  ".join([where + count, *mistakes]))


def _with_choices(schema: Any) -> Any:
    """A schema with a reference in the place of each mark that `plugins.Plugin` left."""
    if isinstance(schema, dict):
        if isinstance(schema.get("plugin"), str):
            return {**{key: schema[key] for key in schema if key != "plugin"}, "$ref": f"#/$defs/{schema['plugin']}"}
        return {key: _with_choices(part) for key, part in schema.items()}
    return [_with_choices(part) for part in schema] if isinstance(schema, list) else schema


# ---------------------------------------------------------------- how mistakes are told

_NEEDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text (in quotes, if it looks like something else)",
    "path_type": "a path",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a block of options",
    "model_type": "a block of options",
    "is_instance_of": "a {class}",
    "too_short": "{min_length} or more of them",
    "none_required": "null",
}
"""What pydantic asks for, in the words of a recipe, by its type of error."""


def _mistakes(
    errors: Sequence[ErrorDetails], block: type[Config], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    """(key path, what was found, what to do) of each error inside `block`, which itself stands at the path `above`."""
    for error in errors:
        if error["type"] == "too_short" and any(_within(other["loc"], error["loc"]) for other in errors):
            continue  # pydantic counts only the items that are right; those that are wrong are told themselves
        inside, owner = _located(block, error["loc"])
        path, context = (*above, *inside), error.get("ctx", {})
        if error["type"] == "plugin":
            yield from _mistakes(context["errors"], context["model"], path)
        else:
            yield ".".join(path), *_told(error, context, owner)


def _within(inner: tuple[str | int, ...], outer: tuple[str | int, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _told(error: ErrorDetails, context: Mapping[str, Any], owner: type[Config]) -> tuple[str, str]:
    if error["type"] == "extra_forbidden":
        return "no such option", _hint(str(error["loc"][-1]), _options(owner))
    if error["type"] == "missing":
        plugin = _plugin(_type_under(owner, None, str(error["loc"][-1])))
        return "missing", f"; one of: {', '.join(names(plugin.kind))}" if plugin else "; it has no default"
    if error["type"] == "value_error":
        return str(context["error"]), ""
    if error["type"] in _NEEDS:
        return f"{_shown(error['input'])} found; needs to be ", _NEEDS[error["type"]].format(**context)
    # Only pydantic's own messages have a url; those of a plugin or of this file say what was found.
    return (f"{_shown(error['input'])} found; " if "url" in error else "") + error["msg"], ""


def _located(block: type[Config], location: tuple[str | int, ...]) -> tuple[list[str], type[Config]]:
    """pydantic's location as a key path, without the alternatives it tried, and the block its last key stands in."""
    here: Any = block
    path: list[str] = []
    owner = block
    for part in location:
        alternatives = _alternatives(here)
        if len(alternatives) > 1:
            here = next((each for each in alternatives if getattr(each, "__name__", "") == part), Any)
        elif part != "[key]":
            owner = _block_class(alternatives[0], None) or owner
            here = _type_under(here, None, part)
            path.append(str(part))
    return path, owner


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _hint(name: str, known: Sequence[str]) -> str:
    if near := _near(name, known):
        return near
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"; there are: {', '.join(known[:12])}{more}"


def _options(block: type[Config]) -> list[str]:
    return [*block.model_fields, *(["extends"] if block is Recipe else [])]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- one recipe over another


def _read(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file over those that it extends; `within` are the files that were being read when it was named."""
    if any(os.path.realpath(path) == os.path.realpath(each) for each in within):
        raise RecipeError(f"extends goes in a circle: {' -> '.join(str(each) for each in [*within, path])}")
    tree = parse(text_of(path), str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: needs to be a block of options, `key: value` lines")
    bases = tree.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and "\0" not in base for base in bases):
        raise RecipeError(f"{path}: extends: {_shown(bases)} found; needs to be a file or a list of files")
    merged: dict[str, Any] = {}
    for each in [*(_read(path.parent / base, (*within, path)) for base in bases), tree]:
        merged = _over(merged, each)
    return merged


def _preset(name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The recipe in the preset of this name, the first folder's if there are two, or one that names the judge.

    Raises:
        RecipeError: there is neither.
    """
    presets = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    if name in presets:
        return _read(presets[name])
    try:
        config_class("judge", name)
    except LookupError as error:
        if "needs the package" in str(error):
            raise RecipeError(f"--judge: {error}") from error
        judges = names("judge")
        near = _near(name, [*presets, *judges]) or "."
        raise RecipeError(
            f"--judge: no preset and no judge is called {name!r}{near} There are presets: "
            f"{', '.join(sorted(presets)) or 'none'}; and judges: {', '.join(judges)}"
        ) from error
    return {"judge": {"name": name}}


def _override(tree: dict[str, Any] | None, override: str, kind: type[Config]) -> dict[str, Any] | None:
    """The tree of a block of this kind with `key.path=value` over it; without a tree the override is checked alone."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{override!r} is no override; those are key.path=value")
    value = parse(text, override, lines=False)
    if tree is None:
        return None
    try:
        return _over(tree, _one_line(keys, value, tree, kind), kind)
    except IndexError as error:
        raise RecipeError(f"{override}: {error}") from error


def _over(base: dict[str, Any], child: dict[str, Any], kind: type[Config] = Recipe) -> dict[str, Any]:
    if "train" in base:
        base = {**base, "train": _named(base["train"])}
    merged: dict[str, Any] = _merged(base, child, kind)
    return merged


def _merged(base: Any, child: Any, expected: Any) -> Any:
    """`child` over `base`, where the types of a recipe expect `expected`."""
    base, child = _spelled_out(base, expected), _spelled_out(child, expected)
    if not (isinstance(base, dict) and isinstance(child, dict)):
        return child
    names_a_plugin = any(_plugin(each) for each in _alternatives(expected))
    if names_a_plugin and "name" in child and child["name"] != base.get("name"):
        return child
    merged = {key: value for key, value in base.items() if key not in _replaced(child, expected)}
    for key, value in child.items():
        below = _type_under(expected, base, key)
        if value is None and isinstance(base.get(key), dict) and NoneType not in get_args(below):
            del merged[key]  # no value is null here: it takes the block back, to the default if there is one
        else:
            merged[key] = _merged(base[key], value, below) if key in base else value
    return merged


def _replaced(child: dict[str, Any], expected: Any) -> frozenset[str]:
    """Options of a block that has only one of them, where `child` names another."""
    given = {key for key, value in child.items() if value is not None}
    blocks = [block for each in _alternatives(expected) if (block := _block_class(each, child))]
    return frozenset().union(*(block.ONE_OF for block in blocks if block.ONE_OF & given)) - child.keys()


def _one_line(keys: Sequence[str], value: Any, base: Any, expected: Any) -> Any:
    """The recipe that an override of `base` is: `a.b=1` is {a: {b: 1}}. A list is repeated with its one item changed.

    Raises:
        IndexError: a key does not count an item of its list.
    """
    if not keys:
        return value
    key = keys[0]
    below = _type_under(expected, base, key)
    if not isinstance(base, list):
        inside = base.get(key) if isinstance(base, dict) else None
        return {key: _one_line(keys[1:], value, inside, below)}
    if key not in map(str, range(len(base))):
        raise IndexError(f"{key!r} is no item of a list that has {len(base)}, counted from 0")
    item = base[int(key)]
    changed = _merged(item, _one_line(keys[1:], value, item, below), below)
    return [*base[: int(key)], changed, *base[int(key) + 1 :]]


def _spelled_out(value: Any, expected: Any) -> Any:
    """The block that a short form stands for, `{name: length}` for `length`, so that keys can be put over it."""
    if isinstance(value, str):
        for each in _alternatives(expected):
            if _plugin(each):
                return {"name": value}
            block = _block_class(each, None)
            if block:
                with contextlib.suppress(ValidationError):
                    return block.model_validate(value).model_dump(exclude_unset=True)
    return value


# The types of a recipe, walked along its keys. A type is what stands in an annotation: a Config, an Annotated[...]
# with a Plugin, a dict, a tuple, or several joined by |.


def _type_under(expected: Any, value: Any, key: str | int) -> Any:
    """The type of what stands at `key` of `value`, itself of type `expected`. Any: the types do not tell."""
    for each in _alternatives(expected):
        block = _block_class(each, value)
        if block is not None and key in block.model_fields:
            return _annotation(block.model_fields[str(key)])
        if get_origin(each) in (dict, tuple, list):
            return get_args(each)[1 if get_origin(each) is dict else 0]
    return Any


def _block_class(expected: Any, value: Any) -> type[Config] | None:
    """The Config that `value` will be read as; that of a plugin is in the module of its name."""
    plugin = _plugin(expected)
    if plugin is not None:
        name = value.get("name") if isinstance(value, dict) else None
        try:
            return config_class(plugin.kind, name) if isinstance(name, str) else None
        except LookupError:
            return None  # reading the whole recipe will say so
    return expected if isinstance(expected, type) and issubclass(expected, Config) else None


def _alternatives(expected: Any) -> list[Any]:
    if get_origin(expected) in (Union, UnionType):
        return [each for each in get_args(expected) if each is not NoneType]
    return [expected]


def _plugin(expected: Any) -> Plugin | None:
    return next((mark for mark in getattr(expected, "__metadata__", ()) if isinstance(mark, Plugin)), None)


def _annotation(field: FieldInfo) -> Any:
    marks = [mark for mark in field.metadata if isinstance(mark, Plugin)]
    return Annotated[field.annotation, marks[0]] if marks else field.annotation
