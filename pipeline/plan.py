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
from typing import Any, NamedTuple

from judges import exam, grading
from judges.base import JudgeConfig, judge_names
from pipeline import agreement, compare, crowd, doctor, examine, generate, label, measure, people, train, votes
from pipeline import rounds as iterated
from pipeline.algorithms.base import AlgorithmConfig
from pipeline.launch import HERE, LaunchConfig
from pipeline.models import processes_for
from pipeline.plugins import Config
from pipeline.ratings import How
from pipeline.recipe import BASE, AnnotationsConfig, AnySampler, GenerateConfig, Recipe, dump
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
    """A policy that is compared."""

    name: str
    algorithm: str
    """`base`, or what trained it."""
    step: str | None
    """The step that made it. None: the base."""


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
        return Contender(BASE, BASE, None)
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
    return as_step(
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
    return as_step(
        "doctor.labels",
        doctor.Examining.of(recipe.model_copy(update={"rounds": 1, "carry": None})),
        [doctor.VERSION],
        inputs=("generate", "label"),
        files=recipe.compare.prompts.files if recipe.annotations else (),
        finish="pipeline.doctor:labels_finish",
    )


def _generate(recipe: Recipe, config: GenerateConfig, who: Contender) -> Step:
    return as_step(
        "generate",
        generate.Pairing.of(recipe.seed, recipe.model, config, who.name),
        [generate.VERSION],
        inputs={who.step: "policy"} if who.step else {},
        files=config.prompts.files,
        work="pipeline.generate:work",
        parted=not config.sampler.REMOTE,
        finish="pipeline.generate:finish",
        processes=answering(config.sampler, config.processes),
    )


def _import(recipe: Recipe, annotations: AnnotationsConfig) -> Step:
    return as_step(
        "generate",
        people.Importing(seed=recipe.seed, annotations=annotations),
        [votes.VERSION, crowd.VERSION, people.VERSION],
        files=annotations.files,
        finish="pipeline.people:import_finish",
    )


def _count(recipe: Recipe, annotations: AnnotationsConfig) -> Step:
    return as_step(
        "label",
        people.Counting(aggregate=annotations.aggregate, label=recipe.label),
        [crowd.VERSION, label.VERSION, people.VERSION],
        inputs=("generate",),
        finish="pipeline.people:label_finish",
    )


def _check(recipe: Recipe) -> Step:
    return as_step(
        "people",
        people.Checking(seed=recipe.seed, judges=recipe.compare.judges, budget_usd=recipe.budget_usd),
        [label.VERSION, people.VERSION, agreement.VERSION],
        inputs=("generate",),
        work="pipeline.people:check_work",
        finish="pipeline.people:check_finish",
        processes=judging(recipe.compare.judges, recipe.label.processes),
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
    return as_step(
        "exam",
        config,
        [exam.VERSION, grading.VERSION, examine.VERSION],
        inputs=("generate",) if recipe.exam.prompts else (),
        files=(recipe.exam.gold,) if recipe.exam.gold else (),
        work="pipeline.examine:work",
        finish="pipeline.examine:finish",
        processes=judging([judge], recipe.label.processes),
    )


def _label(recipe: Recipe, judge: JudgeConfig, generated: GenerateConfig) -> Step:
    config = label.Labelling(
        judge=judge,
        label=recipe.label,
        pairing=generated.pairing,
        enforce=recipe.exam.enforce,
        budget_usd=recipe.budget_usd,
    )
    return as_step(
        "label",
        config,
        [label.VERSION],
        inputs=("generate", "exam") if examines(recipe) else ("generate",),
        work="pipeline.label:work",
        finish="pipeline.label:finish",
        processes=judging([judge], recipe.label.processes),
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
    return as_step(
        f"train.{name}",
        config,
        [train.VERSION],
        inputs=(*algorithm.reads(), *earlier),
        files=_files(algorithm),
        finish="pipeline.train:finish",
        launch=launch,
    )


def sampler_of(recipe: Recipe) -> AnySampler:
    """How held-out answers are drawn."""
    if recipe.compare.sampler is not None:
        return recipe.compare.sampler
    assert recipe.generate is not None  # or the recipe would have been refused
    return recipe.generate.sampler


def _comparison(recipe: Recipe, number: int) -> list[Step]:
    return comparison(recipe, contenders(recipe, number), rewards(recipe, number), [recipe], number)


def comparison(
    recipe: Recipe,
    who: Sequence[Contender],
    reward_models: Mapping[str, str],
    learned: Sequence[Recipe],
    number: int = 1,
) -> list[Step]:
    """The steps that compare policies on held-out prompts, without the report.

    Args:
        who: what is compared, in the order of the report.
        reward_models: the steps whose reward models score the answers, and what these are called.
        learned: the recipes by which they learned.
        number: the round.
    """
    measures = [_measure(recipe, who, reward_models, number)] if recipe.compare.perplexity or reward_models else []
    compared = _compare(recipe, who, learned, [step.name for step in measures], number)
    return [_answers(recipe, who, number), *measures, compared]


def _answers(recipe: Recipe, who: Sequence[Contender], number: int) -> Step:
    # With the same seeds in every round: whoever answered before is found in the journal, and asked nothing twice.
    sampling = generate.Sampling(
        seed=recipe.seed,
        model=recipe.model,
        sampler=sampler_of(recipe),
        prompts=recipe.compare.prompts,
        samples=recipe.compare.samples,
        purpose="heldout",
    )
    return as_step(
        iterated.step_of(number, "answers"),
        compare.Answering(sampling=sampling, checkpoints=tuple(each.name for each in who)),
        [generate.VERSION, compare.VERSION],
        inputs={each.step: f"train.{each.name}" for each in who if each.step},
        files=recipe.compare.prompts.files,
        work="pipeline.compare:answers_work",
        parted=not sampler_of(recipe).REMOTE,
        finish="pipeline.compare:answers_finish",
        processes=answering(sampler_of(recipe), recipe.compare.processes),
    )


def rewards(recipe: Recipe, number: int) -> dict[str, str]:
    """The steps of a round's reward models, and what these are called."""
    steps = [name for name, algorithm in recipe.train.items() if algorithm.MAKES == "reward"]
    return {iterated.step_of(number, f"train.{name}"): iterated.policy_of(number, name) for name in steps}


def _measure(recipe: Recipe, who: Sequence[Contender], reward_models: Mapping[str, str], number: int) -> Step:
    text = recipe.compare.perplexity
    config = measure.Measuring(
        model=recipe.model,
        checkpoints=tuple(each.name for each in who),
        rewards=tuple(reward_models.values()),
        perplexity=text,
    )
    policies = {each.step: f"train.{each.name}" for each in who if each.step} if text else {}
    return as_step(
        iterated.step_of(number, "measure"),
        config,
        [measure.VERSION],
        inputs={
            iterated.step_of(number, "answers"): "answers",
            **policies,
            **{step: f"train.{name}" for step, name in reward_models.items()},
        },
        files=text.files if text else (),
        work="pipeline.measure:work",
        finish="pipeline.measure:finish",
        processes=recipe.compare.processes,
    )


def _compare(
    recipe: Recipe, who: Sequence[Contender], learned: Sequence[Recipe], measures: Sequence[str], number: int
) -> Step:
    labelled, labelled_by = who_labelled(learned)
    config = compare.Comparing(
        seed=recipe.seed,
        judges=recipe.compare.judges,
        labelled=labelled,
        labelled_by=labelled_by,
        confidence=recipe.compare.confidence,
        checkpoints=tuple((each.name, each.algorithm) for each in who),
        budget_usd=recipe.budget_usd,
    )
    return as_step(
        iterated.step_of(number, "compare"),
        config,
        [label.VERSION, compare.VERSION],
        inputs={iterated.step_of(number, "answers"): "answers", **dict.fromkeys(measures, "measure")},
        work="pipeline.compare:compare_work",
        finish="pipeline.compare:compare_finish",
        processes=judging(recipe.compare.judges, recipe.compare.processes),
    )


def who_labelled(learned: Sequence[Recipe]) -> tuple[dict[str, How], str | None]:
    """`labelled` and `labelled_by` of `compare.Comparing`, for policies that learned by these recipes."""
    judges = list({each.judge.fingerprint(): each.judge for each in learned if each.judge}.values())
    people = [crowd.NAME] if any(each.annotations for each in learned) else []
    trained = itertools.chain.from_iterable(each.train.values() for each in learned)
    return compare.taught(judges, trained), " and ".join([*judge_names(judges), *people]) or None


def report(
    title: str, recipe_yaml: str, before: Sequence[str], variants: Mapping[str, Mapping[str, str]] | None = None
) -> Step:
    """The step that tells of all steps before it; `variants` are those of a sweep (`compare.Reporting`)."""
    config = compare.Reporting(
        title=title,
        recipe_yaml=recipe_yaml,
        steps=tuple(before),
        variants={name: dict(steps) for name, steps in (variants or {}).items()},
    )
    return as_step("report", config, [compare.VERSION], inputs=config.steps, finish="pipeline.compare:report_finish")


def judging(judges: Sequence[JudgeConfig], processes: int | None) -> int | None:
    """Processes that judge: where the judges only wait for a server, a call takes about a millisecond of a core."""
    if processes is None and all(judge.remote for judge in judges):
        return min(2, os.cpu_count() or 1)
    return processes


def answering(sampler: AnySampler, processes: int | None) -> int | None:
    """Processes that sample: where they only wait for servers, one has as many answers under way as they take."""
    return 1 if processes is None and sampler.REMOTE else processes


def as_step(
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
