"""A comparison of checkpoints from anywhere: what it asks, and its steps.

    answers -> measure -> compare -> report

The steps are those that end every run, in a directory of their own, so it goes on after a kill, and does nothing twice.
Prompts, sampling and judges are those of the first run that is named, and any of them can be set like an option of a
recipe. Answers and verdicts are kept in the journal beside the first run, under what a checkpoint is and not what it is
called: whatever a run has paid for is not paid for again.

    comparison.yaml    the sources and the options, in the place of a run's recipe.yaml

What is left out: what a source is (`pipeline.sources`), and what the steps do (`pipeline.compare`).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from rich.console import Console

from pipeline import compare, doctor, doctor_data, fitting, generate, measure, plan, recipe, sources, weights
from pipeline.errors import DataError
from pipeline.models import ModelConfig
from pipeline.plugins import Config
from pipeline.recipe import AnySampler, CompareConfig
from pipeline.recipe_yaml import parse, text_of
from pipeline.records import canonical, digest
from pipeline.rounds import place_of, policy_of
from pipeline.run import Run, Step
from pipeline.sources import Found, Made, OpenRun, Source
from pipeline.terminal import COMPARISON, RUNS

TOLD = ("doctor", "doctor.labels", "generate", "exam", "people", "label")
"""Steps of a run, of its first round, that the report of a comparison tells of beside its trainings."""

LONGEST = 60
"""Characters of a directory's name."""


class WholeConfig(Config):
    """How whole models are held in memory, which are loaded one at a time."""

    quantization: Literal["nf4", "int8", "none"] = "none"
    """As `model.quantization`; none: as they were saved."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """As `model.dtype`."""


class ComparisonConfig(Config):
    """What comparison.yaml holds."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"budget_usd"})

    sources: tuple[Source, ...] = Field(min_length=1)
    """What is compared."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    """As in a recipe."""
    model: ModelConfig = ModelConfig()
    """The base of all adapters."""
    whole: WholeConfig = WholeConfig()
    """How sources are loaded that are whole models."""
    compare: CompareConfig
    """Prompts, judges and sampling, as in a recipe."""
    budget_usd: float | None = Field(default=None, ge=0)
    """As in a recipe, for the judges of this comparison."""

    @field_validator("compare", mode="after")
    @classmethod
    def _sources_say_who(cls, value: CompareConfig) -> CompareConfig:
        if value.checkpoints is not None:
            raise ValueError("checkpoints: sources say who is compared; name those of a run as RUN:step")
        return value


OPTIONS = tuple(name for name in ComparisonConfig.model_fields if name != "sources")
"""What can be overridden."""


def open_comparison(
    named: Sequence[Source],
    overrides: Sequence[str] = (),
    out: Path | None = None,
    console: Console | None = None,
    *,
    asking: bool = True,
) -> Run:
    """The run that compares these sources; nothing is loaded or written before it is executed.

    Args:
        overrides: `key.path=value`, of the fields of `ComparisonConfig`.
        out: its directory. None: `compare-...` beside the first run that is named.
        asking: it will be executed, so judges need what they ask with, such as a key.

    Raises:
        RecipeError: an option is wrong, or missing where there is no run to take it from.
        DataError: a source is nothing that can be compared, is not done, or does not fit the others; or a file of
            prompts or texts cannot be read.
    """
    found = [sources.find(each) for each in named]
    runs = _runs(found)
    made = sources.checkpoints(found)
    config = _settings(named, found, runs, made, overrides)
    if asking:
        recipe.check_comparing(config.compare)
    _check_agreement(named, runs, config, overrides)
    options = _named_options(overrides)
    for each in made:
        check_served(each, config.compare.sampler)
        if each.kind in ("adapter", "weights") or (each.kind == "step" and "base" in options):
            fitting.check(each, config.model, options)
    if config.compare.perplexity is not None:
        measure.texts_of(config.compare.perplexity, config.model)
    directory = out or (runs[0].directory.absolute().parent if runs else RUNS) / _directory(named)
    return _run(config, runs, made, directory, console)


def check_served(made: Made, sampler: AnySampler | None) -> None:
    """Look whether the sampler can have a checkpoint answer.

    Raises:
        DataError: it is no adapter, and the sampler's servers take nothing else.
    """
    if sampler is None or not sampler.REMOTE or made.folder is None:
        return
    if made.kind == "model" or (made.folder / weights.FILE).exists():
        raise DataError(
            f"{made.source}: no adapter, and the servers of compare.sampler take nothing else; say "
            "compare.sampler.name=local, or leave it out"
        )


def reopen(directory: Path) -> Run:
    """A comparison from its directory, to see how far it is.

    Raises:
        RecipeError: its comparison.yaml is damaged.
        DataError: a source is not there any more, or is not done.
    """
    path = directory / COMPARISON
    config = recipe.read(ComparisonConfig, parse(text_of(path), str(path)), (), f"{path}: ")
    found = [sources.find(each) for each in config.sources]
    return _run(config, _runs(found), sources.checkpoints(found), directory, None)


def _runs(found: Sequence[Found]) -> list[OpenRun]:
    """The runs among the sources, each once.

    Raises:
        DataError: two have one name.
    """
    runs: dict[Path, OpenRun] = {}
    called: dict[str, Found] = {}
    for each in found:
        if each.run is None or each.run.directory.resolve() in runs:
            continue
        # What their labels, exams and reward models are told by.
        first = called.setdefault(each.run.label, each)
        if first is not each:
            raise DataError(
                f"{first.source} and {each.source}: both runs would be called {each.run.label!r}; "
                f"give one another name: other={each.source}"
            )
        runs[each.run.directory.resolve()] = each.run
    return list(runs.values())


# ---- what is asked


def _settings(
    named: Sequence[Source], found: Sequence[Found], runs: Sequence[OpenRun], made: Sequence[Made],
    overrides: Sequence[str],
) -> ComparisonConfig:  # fmt: skip
    if runs:
        return _settings_of(runs[0], named, overrides)
    tree: dict[str, Any] = {"sources": _tree(named), "compare": {"sampler": {"name": "local"}}}
    base = _only_base(found, made)
    if base is not None:
        tree["model"] = {"base": base}
    where = "there is no run among the sources, whose prompts and judges could be taken; say compare.prompts.files=... "
    return recipe.read(ComparisonConfig, tree, overrides, f"{where}and compare.judges=[...]: ")


def _settings_of(run: OpenRun, named: Sequence[Source], overrides: Sequence[str]) -> ComparisonConfig:
    """The options of a run as a comparison has them, with the overrides."""
    told = run.recipe.model_dump(mode="json")
    sampler = plan.sampler_of(run.recipe).model_dump(mode="json")
    tree = {
        "sources": _tree(named),
        **{name: told[name] for name in ("seed", "model", "budget_usd")},
        "compare": {**told["compare"], "sampler": sampler, "checkpoints": None},
    }
    return recipe.read(ComparisonConfig, tree, overrides, "compare: ")


def _tree(named: Sequence[Source]) -> list[dict[str, Any]]:
    return [each.model_dump(mode="json") for each in named]


def _only_base(found: Sequence[Found], made: Sequence[Made]) -> str | None:
    """The base that the adapters name, where all name one."""
    adapters = [each.folder for each in found if each.kind == "adapter"]
    named = {sources.read_adapter(folder).get("base_model_name_or_path") for folder in adapters}
    return named.pop() if len(named) == 1 else None


def _named_options(overrides: Sequence[str]) -> frozenset[str]:
    """The options of the base that the user named himself."""
    keys = [override.partition("=")[0].strip().split(".") for override in overrides]
    if ["model"] in keys:
        return frozenset(ModelConfig.model_fields)
    return frozenset(key[1] for key in keys if key[0] == "model" and len(key) > 1)


# ---- whether the runs agree


def _check_agreement(
    named: Sequence[Source], runs: Sequence[OpenRun], config: ComparisonConfig, overrides: Sequence[str]
) -> None:
    """Refuse runs of different bases or held-out prompts, and prompts that some run was trained on.

    What is overridden is the same for all: each run is held against the first with the overrides over both.
    """
    held_out = generate.read_prompts(config.compare.prompts)
    for run in runs:
        own = _settings_of(run, named, overrides)
        if different := _different(config.model.identity(), own.model.identity(), "model"):
            raise DataError(
                f"{runs[0].directory} and {run.directory}: their bases differ ({different}); one base can be compared "
                "at a time: set the option for all if that is what you mean, or export one of them as a whole model"
            )
        theirs = generate.read_prompts(own.compare.prompts)
        if theirs != held_out:
            both = len({each.model_dump_json() for each in theirs} & {each.model_dump_json() for each in held_out})
            before, after = config.compare.prompts.identity(), own.compare.prompts.identity()
            raise DataError(
                f"{runs[0].directory} and {run.directory}: their held-out prompts differ ({len(held_out)} and "
                f"{len(theirs)}, {both} of them the same; {_different(before, after, 'compare.prompts')}); give them "
                "the same with compare.prompts.files=..., on which neither was trained"
            )
        _check_untrained(run, config)


def _different(before: dict[str, Any], after: dict[str, Any], where: str) -> str:
    differing = (name for name in before if before[name] != after.get(name))
    return "; ".join(f"{where}.{name}: {before[name]} and {after.get(name)}" for name in differing)


def _check_untrained(run: OpenRun, config: ComparisonConfig) -> None:
    if run.recipe.generate is None or config.compare.prompts == run.recipe.compare.prompts:
        return  # its own doctor has looked
    trained = doctor.trained_on(run.recipe)
    held_out = generate.read_prompts(config.compare.prompts)
    for finding in doctor_data.prompt_findings(trained, held_out, f"generate.prompts.files of {run.directory}"):
        if finding.level == "error":
            raise DataError(f"{finding.where}: {finding.what}; {finding.remedy}")


# ---- the steps


def _run(
    config: ComparisonConfig, runs: Sequence[OpenRun], made: Sequence[Made], directory: Path, console: Console | None
) -> Run:
    cache = (runs[0].directory if runs else directory).absolute().parent / ".cache"
    steps = _steps(config, runs, made, title=directory.name)
    return Run(directory, steps, recipe.dump(config), cache, console, recipe_name=COMPARISON)


def _steps(config: ComparisonConfig, runs: Sequence[OpenRun], made: Sequence[Made], title: str) -> list[Step]:
    # A whole model may count its tokens otherwise, and perplexities are compared by the token.
    readers = [each for each in made if each.kind != "model"] if config.compare.perplexity else []
    rewards = [each for run in runs for each in _rewards(run)]
    who, reading, scoring = ([_contender(each, config) for each in some] for some in (made, readers, rewards))
    steps = plan.comparison(config, who, scoring, [run.recipe for run in runs], readers=reading)
    origins = [origin for run in runs for origin in _origins(run, made)]
    return [*steps, plan.report(title, recipe.dump(config), [step.name for step in steps], origins=origins)]


def _contender(made: Made, config: ComparisonConfig) -> plan.Contender:
    if made.folder is None:
        return plan.Contender(made.name, made.algorithm)
    folder = made.folder.absolute()
    whole = None
    if made.kind == "model":
        whole = ModelConfig(base=str(folder), quantization=config.whole.quantization, dtype=config.whole.dtype)
    elsewhere = generate.Elsewhere(name=made.name, digest=made.digest, folder=folder, whole=whole)
    return plan.Contender(made.name, made.algorithm, elsewhere=elsewhere)


def _rewards(run: OpenRun) -> Iterator[Made]:
    """The reward models of a run that are done."""
    for step, state in run.states.items():
        name = _trained(run, step)
        if name is not None and state.digest is not None and run.recipe.train[name].MAKES == "reward":
            yield Made(_named(run, step), run.recipe.train[name].name, "step", state.path, state.digest)


def _trained(run: OpenRun, step: str) -> str | None:
    """What the recipe calls this training; None: the step trains nothing."""
    plain = place_of(step)[1]
    return plain.removeprefix("train.") if plain.startswith("train.") else None


def _named(run: OpenRun, step: str) -> str:
    """What is made by a training, as a comparison calls it unless the user does."""
    number, plain = place_of(step)
    return f"{run.label}/{policy_of(number, plain.removeprefix('train.'))}"


def _origins(run: OpenRun, made: Sequence[Made]) -> Iterator[compare.Origin]:
    """The steps of a run that the report tells of: what its labels are, and every training that is done."""
    names = {each.folder: each.name for each in made if each.folder is not None}
    for step, state in run.states.items():
        trained = _trained(run, step)
        if state.digest is None or not (trained or step in TOLD):
            continue
        if trained and state.path not in names and run.recipe.train[trained].MAKES == "policy":
            continue  # it is not compared
        name = _named(run, step) if trained else step
        yield compare.Origin(
            run=run.label,
            step=step,
            name=names.get(state.path, name),
            folder=state.path.absolute(),
            digest=state.digest,
        )


def _directory(named: Sequence[Source]) -> str:
    """A readable name: of what is compared, shortened where that is long."""
    words = [
        each.name or (f"{Path(each.place).absolute().name}-{each.step}" if each.step else _last(each)) for each in named
    ]
    name = "compare-" + "-".join(re.sub(r"[^\w.]+", "_", word).strip("._") for word in words)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{digest(canonical(_tree(named)), 8)}"


def _last(source: Source) -> str:
    return source.place if source.place == recipe.BASE else Path(source.place).absolute().name
