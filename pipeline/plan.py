"""The steps of a recipe: what each reads, and which functions do it. The line of data of the whole project.

    doctor -> generate -> exam -> label -> doctor.labels -> train.* -> answers -> measure -> compare -> report

The two doctors look and change nothing: no step but the report reads what they found.

From people's votes, `generate` and `label` do their work without a policy and a judge, and in the place of an exam
`people` checks the comparing judges against the votes that nobody trains on. Where every train step brings its own data
(supervised fine-tuning), there are no labels, and nothing between the first doctor and training.

With `rounds`, generate to compare come again for each later round under names of its own, as steps of a recipe that
differs in seed, prompts and where policies start (`recipe_in`); the report tells of all rounds. `measure` is there if
there are reward models, or text for perplexity.

What is left out: running them (`pipeline.run`), and what they do (`generate`, `examine`, `label`, `people`, `train`,
`measure`, `compare`).
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from judges import exam, grading
from judges.base import JudgeConfig, judge_names
from pipeline import agreement, compare, crowd, doctor, examine, generate, label, measure, people, train, votes
from pipeline import rounds as iterated
from pipeline.algorithms.base import AlgorithmConfig
from pipeline.launch import HERE, LaunchConfig
from pipeline.models import ModelConfig, processes_for
from pipeline.plugins import Config
from pipeline.ratings import How
from pipeline.recipe import BASE, AnnotationsConfig, AnySampler, CompareConfig, GenerateConfig, Recipe, dump
from pipeline.recipe_steps import policies
from pipeline.run import Run, Step


def steps(recipe: Recipe, title: str) -> list[Step]:
    """The graph of a recipe, in the order of its work."""
    first = iterated.before_generate(recipe.train, recipe.generate.policy if recipe.generate else None)
    before = [
        _doctor(recipe),
        *[_train(recipe, name) for name in first],
        *_labels(recipe_in(recipe, 1)),
        *([_doctor_of_labels(recipe)] if labelled(recipe) else []),
        *[_train(recipe, name) for name in recipe.train if name not in first],
        *_comparison(recipe, 1),
        *[step for number in range(2, recipe.rounds + 1) for step in _later(recipe, number)],
    ]
    return [*before, report(title, dump(recipe), [step.name for step in before])]


def open_run(recipe: Recipe, directory: Path) -> Run:
    """The run of a recipe in a directory; the journal is beside it, shared with its neighbours."""
    cache = directory.absolute().parent / ".cache"
    return Run(directory, steps(recipe, title=directory.name), dump(recipe), cache)


class Contender(NamedTuple):
    """A policy that is compared, or a reward model that scores the answers of all."""

    name: str
    algorithm: str
    """`base`, or what trained it."""
    step: str | None = None
    """The step of this run that made it. None: the base, or it is from elsewhere."""
    elsewhere: generate.Elsewhere | None = None


class Asked(Protocol):
    """What a comparison needs to know: a recipe, or the options of `prefloop compare`."""

    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def compare(self) -> CompareConfig: ...
    @property
    def budget_usd(self) -> float | None: ...


def labelled(recipe: Recipe) -> bool:
    """Whether there are labels: else every train step brings data of its own."""
    return recipe.annotations is not None or recipe.generate is not None


def contenders(recipe: Recipe, number: int = 1) -> list[Contender]:
    """What is compared in a round, in the order of the recipe: in a later round the policy that it began with comes
    after the base, and policies that no round repeats are left out."""
    named = recipe.compare.checkpoints or (BASE, *policies(recipe.train))
    if number == 1:
        return [_contender(recipe, name, 1) for name in named]
    base = [_contender(recipe, BASE, 1)] if BASE in named else []
    again = iterated.repeated(recipe.train)
    assert recipe.carry is not None  # or the recipe would have been refused
    return [
        *base,
        _contender(recipe, recipe.carry, number - 1),
        *[_contender(recipe, name, number) for name in named if name in again],
    ]


def _contender(recipe: Recipe, name: str, number: int) -> Contender:
    if name == BASE:
        return Contender(BASE, BASE)
    step = iterated.step_of(number, f"train.{name}")
    return Contender(iterated.policy_of(number, name), recipe.train[name].name, step)


def recipe_in(recipe: Recipe, number: int) -> Recipe:
    """The recipe of a round: with its own seed, prompts, and policies to start from."""
    if recipe.generate is None:
        return recipe
    prompts = recipe.generate.prompts
    prompts = prompts.model_copy(update={"files": iterated.files_in(number, recipe.rounds, prompts.files)})
    own: dict[str, Any] = {
        "seed": iterated.seed_in(number, recipe.seed),
        "generate": recipe.generate.model_copy(update={"prompts": prompts}),
    }
    if number > 1 and recipe.carry is not None:
        again = iterated.repeated(recipe.train)
        own["train"] = {name: iterated.in_later(recipe.train[name], recipe.carry, again) for name in again}
    return recipe.model_copy(update=own)


def _later(recipe: Recipe, number: int) -> list[Step]:
    """The steps of a round after the first, under its names; what they read is called as it is in the first."""
    assert recipe.carry is not None  # or the recipe would have been refused
    own, carried = recipe_in(recipe, number), _contender(recipe, recipe.carry, number - 1)
    made = [*_labels(own, carried), _doctor_of_labels(recipe), *[_train(own, name) for name in own.train]]
    names = {step.name: iterated.step_of(number, step.name) for step in made}
    again = iterated.repeated(recipe.train)
    starting = {f"train.{name}" for name in again if iterated.goes_on(recipe.train[name], again)} | {"generate"}
    found = []
    for step in made:
        theirs = {**names, f"train.{recipe.carry}": carried.step} if step.name in starting else names
        inputs = {theirs.get(name) or name: step.called.get(name, name) for name in step.inputs}
        called = {name: alias for name, alias in inputs.items() if name != alias}
        found.append(replace(step, name=names[step.name], inputs=tuple(inputs), called=called))
    return [*found, *_comparison(recipe, number)]


def _labels(recipe: Recipe, who: Contender | None = None) -> list[Step]:
    """Everything up to the labels: from people's votes, or from the policy and a judge.

    Args:
        who: whose policy answers. None: whom `generate` names.
    """
    if not labelled(recipe):
        return []
    if recipe.annotations is not None:
        checked = [_check(recipe)] if recipe.annotations.held_out else []
        return [_import(recipe, recipe.annotations), *checked, _count(recipe, recipe.annotations)]
    assert recipe.generate is not None and recipe.judge is not None  # or the recipe would have been refused
    exams = [_exam(recipe, recipe.judge)] if examines(recipe) else []
    who = who or _contender(recipe, recipe.generate.policy or BASE, 1)
    return [_generate(recipe, recipe.generate, who), *exams, _label(recipe, recipe.judge, recipe.generate)]


def _doctor(recipe: Recipe) -> Step:
    prompts = recipe.generate.prompts.files if recipe.generate else ()
    demonstrations = [file for algorithm in recipe.train.values() for file in _files(algorithm)]
    text = recipe.compare.perplexity
    return _as_step(
        "doctor",
        doctor.Examining.of(recipe),
        [doctor.VERSION],
        files=(*prompts, *recipe.compare.prompts.files, *(text.files if text else ()), *demonstrations),
        finish="pipeline.doctor:finish",
    )


def _files(algorithm: AlgorithmConfig) -> tuple[Path, ...]:
    return tuple(itertools.chain.from_iterable(algorithm.files().values()))


def _doctor_of_labels(recipe: Recipe) -> Step:
    # That there are more rounds makes no difference to the labels of one.
    return _as_step(
        "doctor.labels",
        doctor.Examining.of(recipe.model_copy(update={"rounds": 1, "carry": None})),
        [doctor.VERSION],
        inputs=("generate", "label"),
        files=recipe.compare.prompts.files if recipe.annotations else (),
        finish="pipeline.doctor:labels_finish",
    )


def _generate(recipe: Recipe, config: GenerateConfig, who: Contender) -> Step:
    return _as_step(
        "generate",
        generate.Pairing.of(recipe.seed, recipe.model, config, who.name),
        [generate.VERSION],
        inputs={who.step: "policy"} if who.step else {},
        files=config.prompts.files,
        work="pipeline.generate:work",
        parted=not config.sampler.REMOTE,
        finish="pipeline.generate:finish",
        processes=_answering(config.sampler, config.processes),
    )


def _import(recipe: Recipe, annotations: AnnotationsConfig) -> Step:
    return _as_step(
        "generate",
        people.Importing(seed=recipe.seed, annotations=annotations),
        [votes.VERSION, crowd.VERSION, people.VERSION],
        files=annotations.files,
        finish="pipeline.people:import_finish",
    )


def _count(recipe: Recipe, annotations: AnnotationsConfig) -> Step:
    return _as_step(
        "label",
        people.Counting(aggregate=annotations.aggregate, label=recipe.label),
        [crowd.VERSION, label.VERSION, people.VERSION],
        inputs=("generate",),
        finish="pipeline.people:label_finish",
    )


def _check(recipe: Recipe) -> Step:
    return _as_step(
        "people",
        people.Checking(seed=recipe.seed, judges=recipe.compare.judges, budget_usd=recipe.budget_usd),
        [label.VERSION, people.VERSION, agreement.VERSION],
        inputs=("generate",),
        work="pipeline.people:check_work",
        finish="pipeline.people:check_finish",
        processes=_judging(recipe.compare.judges, recipe.label.processes),
    )


def examines(recipe: Recipe) -> bool:
    """Whether there is a judge, and it has anything to sit."""
    return recipe.judge is not None and (recipe.exam.prompts > 0 or recipe.exam.gold is not None)


def _exam(recipe: Recipe, judge: JudgeConfig) -> Step:
    config = examine.Examining(
        seed=recipe.seed,
        judge=judge,
        prompts=recipe.exam.prompts,
        gold=recipe.exam.gold,
        floors=recipe.exam.floors,
        budget_usd=recipe.budget_usd,
    )
    return _as_step(
        "exam",
        config,
        [exam.VERSION, grading.VERSION, examine.VERSION],
        inputs=("generate",) if recipe.exam.prompts else (),
        files=(recipe.exam.gold,) if recipe.exam.gold else (),
        work="pipeline.examine:work",
        finish="pipeline.examine:finish",
        processes=_judging([judge], recipe.label.processes),
    )


def _label(recipe: Recipe, judge: JudgeConfig, generated: GenerateConfig) -> Step:
    config = label.Labelling(
        judge=judge,
        label=recipe.label,
        pairing=generated.pairing,
        enforce=recipe.exam.enforce,
        budget_usd=recipe.budget_usd,
    )
    return _as_step(
        "label",
        config,
        [label.VERSION],
        inputs=("generate", "exam") if examines(recipe) else ("generate",),
        work="pipeline.label:work",
        finish="pipeline.label:finish",
        processes=_judging([judge], recipe.label.processes),
    )


def _train(recipe: Recipe, name: str) -> Step:
    algorithm = recipe.train[name]
    launch = algorithm.launch or recipe.launch
    config = train.Training(
        seed=recipe.seed,
        model=recipe.model,
        algorithm=algorithm,
        launch=launch,
        budget_usd=recipe.budget_usd,
        allow_inexact_resume=recipe.allow_inexact_resume,
    )
    earlier = dict.fromkeys(f"train.{need.step}" for need in algorithm.needs())
    return _as_step(
        f"train.{name}",
        config,
        [train.VERSION],
        inputs=(*algorithm.reads(), *earlier),
        files=_files(algorithm),
        finish="pipeline.train:finish",
        launch=launch,
    )


def sampler_of(asked: Asked) -> AnySampler:
    """How held-out answers are drawn."""
    if asked.compare.sampler is not None:
        return asked.compare.sampler
    assert isinstance(asked, Recipe) and asked.generate is not None  # or it would have been refused
    return asked.generate.sampler


def _comparison(recipe: Recipe, number: int) -> list[Step]:
    return comparison(recipe, contenders(recipe, number), rewards(recipe, number), [recipe], number)


def comparison(
    asked: Asked,
    who: Sequence[Contender],
    reward_models: Sequence[Contender],
    learned: Sequence[Recipe],
    number: int = 1,
    readers: Sequence[Contender] | None = None,
) -> list[Step]:
    """The steps that compare policies on held-out prompts, without the report.

    Args:
        who: what is compared, in the order of the report.
        reward_models: what scores the answers.
        learned: the recipes by which they learned.
        number: the round.
        readers: whose perplexity is measured. None: everybody's.
    """
    measures = _measures(asked, who if readers is None else readers, reward_models, number)
    compared = _compare(asked, who, learned, [step.name for step in measures], number)
    return [_answers(asked, who, number), *measures, compared]


def _answers(asked: Asked, who: Sequence[Contender], number: int) -> Step:
    # With the same seeds in every round: whoever answered before is found in the journal, and asked nothing twice.
    sampler = sampler_of(asked)
    sampling = generate.Sampling(
        seed=asked.seed,
        model=asked.model,
        sampler=sampler,
        prompts=asked.compare.prompts,
        samples=asked.compare.samples,
        purpose="heldout",
    )
    names = tuple(each.name for each in who)
    return _as_step(
        iterated.step_of(number, "answers"),
        compare.Answering(sampling=sampling, checkpoints=names, elsewhere=_from_elsewhere(who)),
        [generate.VERSION, compare.VERSION],
        inputs=_made_here(who),
        files=asked.compare.prompts.files,
        work="pipeline.compare:answers_work",
        parted=not sampler.REMOTE,
        finish="pipeline.compare:answers_finish",
        processes=_answering(sampler, asked.compare.processes),
    )


def _made_here(who: Sequence[Contender]) -> dict[str, str]:
    """The steps that made these, and by what names those that read them find them."""
    return {each.step: f"train.{each.name}" for each in who if each.step}


def _from_elsewhere(who: Sequence[Contender]) -> tuple[generate.Elsewhere, ...]:
    return tuple(each.elsewhere for each in who if each.elsewhere)


def rewards(recipe: Recipe, number: int) -> list[Contender]:
    """A round's reward models."""
    return [_contender(recipe, name, number) for name, made in recipe.train.items() if made.MAKES == "reward"]


def _measures(
    asked: Asked, readers: Sequence[Contender], reward_models: Sequence[Contender], number: int
) -> list[Step]:
    """Nothing, where there is neither a reward model nor a text to measure with."""
    text = asked.compare.perplexity if readers else None
    if not (text or reward_models):
        return []
    read = [*(readers if text else ()), *reward_models]
    config = measure.Measuring(
        model=asked.model,
        checkpoints=tuple(each.name for each in readers),
        rewards=tuple(each.name for each in reward_models),
        perplexity=text,
        elsewhere=_from_elsewhere(read),
    )
    step = _as_step(
        iterated.step_of(number, "measure"),
        config,
        [measure.VERSION],
        inputs={iterated.step_of(number, "answers"): "answers", **_made_here(read)},
        files=text.files if text else (),
        work="pipeline.measure:work",
        finish="pipeline.measure:finish",
        processes=asked.compare.processes,
    )
    return [step]


def _compare(
    asked: Asked, who: Sequence[Contender], learned: Sequence[Recipe], measures: Sequence[str], number: int
) -> Step:
    labelled, labelled_by = _who_labelled(learned)
    config = compare.Comparing(
        seed=asked.seed,
        judges=asked.compare.judges,
        labelled=labelled,
        labelled_by=labelled_by,
        confidence=asked.compare.confidence,
        checkpoints=tuple((each.name, each.algorithm) for each in who),
        budget_usd=asked.budget_usd,
    )
    return _as_step(
        iterated.step_of(number, "compare"),
        config,
        [label.VERSION, compare.VERSION],
        inputs={iterated.step_of(number, "answers"): "answers", **dict.fromkeys(measures, "measure")},
        work="pipeline.compare:compare_work",
        finish="pipeline.compare:compare_finish",
        processes=_judging(asked.compare.judges, asked.compare.processes),
    )


def _who_labelled(learned: Sequence[Recipe]) -> tuple[dict[str, How], str | None]:
    """`labelled` and `labelled_by` of `compare.Comparing`, for policies that learned by these recipes."""
    judges = list({each.judge.fingerprint(): each.judge for each in learned if each.judge}.values())
    people = [crowd.NAME] if any(each.annotations for each in learned) else []
    trained = itertools.chain.from_iterable(each.train.values() for each in learned)
    return compare.taught(judges, trained), " and ".join([*judge_names(judges), *people]) or None


def report(
    title: str,
    recipe_yaml: str,
    before: Sequence[str],
    variants: Mapping[str, Mapping[str, str]] | None = None,
    origins: Sequence[compare.Origin] = (),
) -> Step:
    """The step that tells of all steps before it; the rest is as in `compare.Reporting`."""
    config = compare.Reporting(
        title=title,
        recipe_yaml=recipe_yaml,
        steps=tuple(before),
        origins=tuple(origins),
        variants={name: dict(steps) for name, steps in (variants or {}).items()},
    )
    return _as_step("report", config, [compare.VERSION], inputs=config.steps, finish="pipeline.compare:report_finish")


def _judging(judges: Sequence[JudgeConfig], processes: int | None) -> int | None:
    """Processes that judge: where the judges only wait for a server, a call takes about a millisecond of a core."""
    if processes is None and all(judge.remote for judge in judges):
        return min(2, os.cpu_count() or 1)
    return processes


def _answering(sampler: AnySampler, processes: int | None) -> int | None:
    """Processes that sample: where they only wait for servers, one has as many answers under way as they take."""
    return 1 if processes is None and sampler.REMOTE else processes


def _as_step(
    name: str,
    config: Config,
    versions: list[int],
    *,
    finish: str,
    inputs: Sequence[str] | Mapping[str, str] = (),
    files: tuple[Path, ...] = (),
    work: str | None = None,
    processes: int | None = None,
    parted: bool = False,
    launch: LaunchConfig = HERE,
) -> Step:
    return Step(
        name=name,
        identity={**config.identity(), "version": versions},
        inputs=tuple(inputs),
        called={name: alias for name, alias in inputs.items() if name != alias} if isinstance(inputs, Mapping) else {},
        files=files,
        options={"config": config.model_dump(mode="json")},
        work=work,
        ranks=processes_for(processes) if work else 1,
        parted=parted,
        finish=finish,
        launch=launch,
    )
