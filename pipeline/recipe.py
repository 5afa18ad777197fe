"""The recipe: one experiment as one YAML file. What may be in it, and how it is read.

    recipe = load("recipes/rlaif.yaml", ["train.dpo.beta=0.05", "judge=length"])

A recipe may say `extends: base.yaml` and then only what differs; an override `key.path=value` is one more recipe on
top, of a single line. Blocks merge key by key, lists replace, and another `name` replaces its whole block, so that no
option of the old judge lingers. All mistakes are raised together, each by its key path, before any model loads.

What is left out, on purpose: variables, reading of the environment, and anything else that would make the meaning of
a recipe depend on more than its files. `${HOME}` is six characters and `_target_` an unknown option. Nothing here
imports torch, and no plugin is imported that the recipe does not name. In files of their own: YAML itself
(`recipe_yaml.py`), one recipe over another (`recipe_merge.py`), what train steps must be to each other
(`recipe_steps.py`), and how mistakes are told (`recipe_mistakes.py`).
"""

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic.json_schema import models_json_schema
from pydantic_core import InitErrorDetails, PydanticCustomError

from judges.base import AnyJudge, JudgeConfig
from judges.exam import ExamConfig, GoldPair
from pipeline.algorithms.base import AlgorithmConfig
from pipeline.errors import RecipeError
from pipeline.importers.base import Source
from pipeline.launch import HERE, LaunchConfig
from pipeline.models import ModelConfig
from pipeline.plugins import FOLDERS, Config, Files, Plugin, config_class, names
from pipeline.recipe_merge import over, overridden, preset, tree_of
from pipeline.recipe_mistakes import all_of, explain, hint
from pipeline.recipe_steps import (
    mistake,
    not_served,
    policies,
    unserved,
    with_names,
    with_shapes,
    without_answers,
    wrong_carry,
    wrong_launches,
    wrong_needs,
    wrong_policy,
    wrong_starts,
    wrong_tuning,
)
from pipeline.recipe_yaml import Dumper
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

_Asked = JudgeConfig | SamplerConfig | AlgorithmConfig
"""What may lack something, such as a key."""


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
    FILE_KEYS: ClassVar[tuple[str, ...]] = ("extends",)

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
        return with_shapes(with_names(steps))

    @field_validator("train", mode="after")
    @classmethod
    def _steps_have_what_they_read(
        cls, steps: dict[str, AnyAlgorithm], info: ValidationInfo
    ) -> dict[str, AnyAlgorithm]:
        mistakes = [*wrong_needs(steps), *wrong_starts(steps), *_not_scoring(steps)]
        if info.data.get("generate", True) is None and info.data.get("annotations", True) is None:
            mistakes += without_answers(steps)
        if "model" in info.data:
            mistakes += wrong_tuning(steps, info.data["model"])
        if "launch" in info.data:
            mistakes += wrong_launches(steps, info.data["launch"], info.data.get("model"))
        if mistakes:
            raise ValidationError.from_exception_data("train", mistakes)
        return steps

    @field_validator("train", mode="after")
    @classmethod
    def _policy_is_there_before_it_answers(
        cls, steps: dict[str, AnyAlgorithm], info: ValidationInfo
    ) -> dict[str, AnyAlgorithm]:
        generate = info.data.get("generate")
        mistakes = list(wrong_policy(generate.policy, steps)) if generate and generate.policy else []
        if generate and not mistakes:
            mistakes = list(unserved(generate.sampler, [generate.policy] if generate.policy else [], steps))
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
            mistakes = list(wrong_carry(carry, steps, info.data.get("rounds", 1)))
            if carry and carry in steps and generate and (why := not_served(generate.sampler, carry, steps)):
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
            mistakes.append(mistake(("sampler",), "missing; there is no generate.sampler to take"))
        if mistakes:
            raise ValidationError.from_exception_data("compare", mistakes)
        return compare


SCORING = (("reward", "judge"), ("eval_judge",))
"""Options of a train step, as key paths inside its block, whose judges score the answers of the policy."""


def scoring_judges(steps: Mapping[str, AlgorithmConfig]) -> Iterator[tuple[tuple[str, ...], JudgeConfig]]:
    """The judges that score answers while a policy learns, each with its key path under `train`."""
    for name, step in steps.items():
        for path in SCORING:
            found: Any = step
            for option in path:
                found = getattr(found, option, None)
            if isinstance(found, JudgeConfig):
                yield (name, *path), found


def _not_scoring(steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    """Told before the stages that come before training have been paid for."""
    for path, judge in scoring_judges(steps):
        if not judge.scores_alone:
            what = f"{judge.name} compares two answers and cannot score one by itself"
            yield mistake(path, f"{what}; name one that does, such as likelihood")


def _unserved_checkpoints(
    compare: CompareConfig, generate: GenerateConfig | None, steps: Mapping[str, AlgorithmConfig]
) -> Iterator[InitErrorDetails]:
    sampler = compare.sampler or (generate and generate.sampler)
    for name in compare.checkpoints or policies(steps):
        if sampler and name in steps and (why := not_served(sampler, name, steps)):
            yield mistake(("sampler",), why)


def _wrong_checkpoints(compare: CompareConfig, steps: Mapping[str, AlgorithmConfig]) -> Iterator[InitErrorDetails]:
    known = [BASE, *policies(steps)]
    named = compare.checkpoints or ()
    for index, name in enumerate(named):
        if name in steps and name not in known:
            yield mistake(("checkpoints", index), f"{name!r} makes no policy; those that do: {', '.join(known)}")
        elif name not in known:
            yield mistake(("checkpoints", index), f"no step is called {name!r}{hint(name, known)}")
        elif name in named[:index]:
            yield mistake(("checkpoints", index), f"{name!r} is there twice")
    if len(known) == 1:
        yield mistake(("checkpoints",), "no step makes a policy; add one that does, such as dpo, under train")


def _trained_on(compare: CompareConfig, generate: GenerateConfig) -> Iterator[InitErrorDetails]:
    trained_on = {os.path.realpath(file) for file in generate.prompts.files}
    for index, file in enumerate(compare.prompts.files):
        if os.path.realpath(file) in trained_on:
            what = f"{str(file)!r} is in generate.prompts too; comparing needs prompts that were not trained on"
            yield mistake(("prompts", "files", index), what)


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
            yield mistake(("perplexity", "files", index), what)


def _less(identity: dict[str, Any], unsaid: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in unsaid}


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
        tree = tree_of(Path(path), Recipe)
    except RecipeError as error:
        mistakes.append(str(error))
    if judge is not None:
        try:
            chosen = preset(judge, [Path(path).parent / PRESETS, RECIPES / PRESETS], Recipe)
            tree = None if tree is None else over(tree, chosen, Recipe)
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
            tree = overridden(tree, override, kind)
        except RecipeError as error:
            mistakes.append(str(error))
    block = None
    if tree is not None:
        try:
            block = kind.model_validate(tree)
        except ValidationError as error:
            mistakes += explain(error, kind)
    if block is None or mistakes:
        raise all_of(mistakes, where)
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
        raise all_of(mistakes, "")
    if gold is not None:
        for _ in read_jsonl(gold, GoldPair):
            pass


def check_judges(recipe: Recipe) -> None:
    """Asks judges, samplers and train steps what they lack, such as a key, so that no run stops for it half-way.

    Raises:
        RecipeError: naming everything that is missing.
    """
    _refuse(_lacked_by(_asked(recipe)))


def check_comparing(compare: CompareConfig) -> None:
    """`check_judges` of those that compare."""
    _refuse(_lacked_by(_comparing(compare)))


def check(recipe: Recipe, *, starts: bool) -> None:
    """What is looked at before a recipe's steps are planned: its files, and where it `starts`, what it needs here.

    Raises:
        RecipeError: naming everything that is missing.
        DataError: as `check_files`.
    """
    check_files(recipe)
    if starts:
        _refuse(lacking(recipe))


def lacking(recipe: Recipe) -> list[tuple[str, str]]:
    """What this machine lacks for a run to begin, such as a key or DeepSpeed: key paths, and `what; what to do`."""
    return [*_lacked_by(_asked(recipe)), *_without_deepspeed(recipe)]


def _lacked_by(asked: Mapping[str, _Asked]) -> Iterator[tuple[str, str]]:
    return ((path, lacks) for path, each in asked.items() for lacks in each.lacks())


def _asked(recipe: Recipe) -> dict[str, _Asked]:
    """Every judge, sampler and train step, by its key path."""
    judges = {} if recipe.judge is None else {"judge": recipe.judge}
    samplers = {} if recipe.generate is None else {"generate.sampler": recipe.generate.sampler}
    scoring = {".".join(("train", *path)): judge for path, judge in scoring_judges(recipe.train)}
    steps = {f"train.{name}": step for name, step in recipe.train.items()}
    return {**samplers, **judges, **steps, **scoring, **_comparing(recipe.compare)}


def _comparing(compare: CompareConfig) -> dict[str, _Asked]:
    samplers = {} if compare.sampler is None else {"compare.sampler": compare.sampler}
    return {**samplers, **{f"compare.judges.{n}": each for n, each in enumerate(compare.judges)}}


def _without_deepspeed(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """DeepSpeed, where a train step is to use it and it is not there."""
    asking = [name for name, step in recipe.train.items() if (step.launch or recipe.launch).zero]
    if asking and importlib.util.find_spec("deepspeed") is None:
        what = "launch.zero needs DeepSpeed, which is not installed"
        yield f"train.{asking[0]}", f"{what}; pip install 'prefloop[gpu]', or set launch.zero to 0"


def _refuse(lacking: Iterable[tuple[str, str]]) -> None:
    if mistakes := [f"{path}: {what}" for path, what in lacking]:
        raise all_of(mistakes, "")


def _with_choices(schema: Any) -> Any:
    """A schema with a reference in the place of each mark that `plugins.Plugin` left."""
    if isinstance(schema, dict):
        if isinstance(schema.get("plugin"), str):
            return {**{key: schema[key] for key in schema if key != "plugin"}, "$ref": f"#/$defs/{schema['plugin']}"}
        return {key: _with_choices(part) for key, part in schema.items()}
    return [_with_choices(part) for part in schema] if isinstance(schema, list) else schema
