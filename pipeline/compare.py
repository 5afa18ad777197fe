"""Stage 4: every checkpoint answers the held-out prompts, and judges compare the checkpoints by their answers.

Comparing is generating and labelling again with the checkpoints as the sources, so the code is that of `generate` and
`label`. What is left out: the statistics (`pipeline.statistics`, `pipeline.ratings`) and the page (`pipeline.report`).
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from judges.base import AnyJudge, JudgeConfig, judge_names, judges_in
from judges.grading import ExamReport
from pipeline import adjustments, crowd, doctor, generate, label, measure, people, provenance, store
from pipeline.agreement import AgreementReport, Rater, agree
from pipeline.algorithms.base import AlgorithmConfig
from pipeline.algorithms.held_out import HeldOut
from pipeline.algorithms.scoring import FACTS
from pipeline.errors import JudgeError
from pipeline.findings import Finding
from pipeline.generate import Answer, Elsewhere, Policy, Sampling
from pipeline.measure import Measures
from pipeline.phases import Phases
from pipeline.plugins import Config
from pipeline.ratings import (
    DID,
    Checkpoint,
    Comparison,
    How,
    JudgeInfo,
    Results,
    RewardScore,
    compare_checkpoints,
    describe,
    describe_judge,
    interval,
    percent,
    perplexity,
    reward_score,
)
from pipeline.recipe import BASE
from pipeline.records import Pair, Prompt, Response, Verdict, seed_of
from pipeline.report.data import Labels, ReportData, Sample, StepTime
from pipeline.report.evidence import evidence_of
from pipeline.report.render import render
from pipeline.rounds import place_of, policy_of
from pipeline.statistics import bradley_terry
from pipeline.statistics.win_rate import excludes_half
from pipeline.worker import Job

VERSION = 5
"""Raised when a change of this file changes what comes out."""

DOCTORS = ("doctor", "doctor.labels")
"""Steps that leave findings."""

KEPT = (("answers", "answers.jsonl"), ("compare", "verdicts.jsonl"))
"""Where all answers and all verdicts are, for whoever misses some of them on the page."""

CONFIDENCE_BINS = 10
"""Bars of the report's histogram of confidence."""

T = TypeVar("T")
Told = dict[str, dict[str, dict[str, T]]]
"""Prompt -> judge -> `one vs other` -> something."""


class Answering(Config):
    """The identity of the step that answers the held-out prompts."""

    sampling: Sampling
    checkpoints: tuple[str, ...]
    """`base`, names of train steps, and of those from elsewhere."""
    elsewhere: tuple[Elsewhere, ...] = ()


class Comparing(Config):
    """The identity of the step that compares the answers."""

    RUNTIME = frozenset({"budget_usd"})

    seed: int
    judges: tuple[AnyJudge, ...]
    labelled: dict[str, How]
    """What judges had to do with what any of the checkpoints learned, by their fingerprints (`taught`). None: people
    labelled, or nobody."""
    labelled_by: str | None
    """What the report calls who labelled. None: nobody, there are no labels."""
    confidence: float
    checkpoints: tuple[tuple[str, str], ...]
    """Name and algorithm of each, in the order of the report."""
    budget_usd: float | None = None


def taught(labelled_by: Iterable[JudgeConfig], trained: Iterable[AlgorithmConfig]) -> dict[str, How]:
    """What judges had to do with training, by their fingerprints: those that labelled, those that stand in them, and
    those that stand in a train step, whose reward they are."""
    labelling = list(labelled_by)
    rewarded: dict[str, How] = {
        judge.fingerprint(): "rewarded" for algorithm in trained for judge in judges_in(algorithm)
    }
    parts: dict[str, How] = {judge.fingerprint(): "labelled in part" for each in labelling for judge in judges_in(each)}
    return {**rewarded, **parts, **{judge.fingerprint(): "labelled" for judge in labelling}}


def _how(judge: JudgeConfig, labelled: Mapping[str, How]) -> How | None:
    """What a comparing judge had to do with training, itself or by a judge that stands in it; None: nothing."""
    own = labelled.get(judge.fingerprint())
    inner = {labelled[found] for each in judges_in(judge) if (found := each.fingerprint()) in labelled}
    return own or ("rewarded" if inner == {"rewarded"} else "labelled in part" if inner else None)


class Origin(Config):
    """A step of another run, of whose checkpoints the report tells."""

    RUNTIME = frozenset({"folder"})

    run: str
    """What the report calls the run."""
    step: str
    """As the run itself calls it."""
    name: str
    """What the report calls the step: a policy by its name among the checkpoints."""
    folder: Path
    digest: str


class Reporting(Config):
    """The identity of the report step."""

    title: str
    recipe_yaml: str
    steps: tuple[str, ...]
    """What the report tells of, in the order of the work."""
    origins: tuple[Origin, ...] = ()
    """Where the checkpoints come from that no step of this run made."""
    variants: dict[str, dict[str, str]] = Field(default={})
    """Of a sweep: each variant's steps before the comparison, as a run of it alone calls them -> as this one does."""


# ---- answers


def answers_work(job: Job) -> None:
    """Answer this process's share of the held-out prompts by every checkpoint, into the journal."""
    config = Answering.model_validate(job.options["config"])
    generate.answer(config.sampling, job, _policies(config, job))


def answers_finish(job: Job) -> None:
    """Write prompts.jsonl, answers.jsonl and summary.json."""
    config = Answering.model_validate(job.options["config"])
    answers = generate.collect(config.sampling, job, _policies(config, job))
    store.write_jsonl(job.out / "prompts.jsonl", generate.read_prompts(config.sampling.prompts))
    store.write_jsonl(job.out / "answers.jsonl", answers)
    store.write_json(job.out / "summary.json", generate.counts(answers))


def _policies(config: Answering, job: Job) -> dict[str, Policy]:
    return {name: generate.policy_called(name, config.elsewhere, job) for name in config.checkpoints}


# ---- comparisons


def compare_work(job: Job) -> None:
    """Judge this process's share of the prompts with every comparing judge, into the journal."""
    config = Comparing.model_validate(job.options["config"])
    asked = _blind(_matches(config, job))
    phases = Phases(job)
    for judge, name in zip(config.judges, judge_names(config.judges), strict=True):
        with phases(f"judging by {name}"):
            label.judge_share(judge, list(asked.values()), job, config.budget_usd)
    phases.tell()


def compare_finish(job: Job) -> None:
    """Write verdicts.jsonl (every judge's) and results.json."""
    config = Comparing.model_validate(job.options["config"])
    pairs = _matches(config, job)
    verdicts = {judge.fingerprint(): _verdicts(judge, pairs, job, config.budget_usd) for judge in config.judges}
    phases = Phases(job)
    with phases("statistics"):
        results = _results(config, pairs, verdicts, _answers(job), measure.read(job.inputs.get("measure")))
    phases.tell()
    store.write_jsonl(job.out / "verdicts.jsonl", itertools.chain.from_iterable(verdicts.values()))
    store.write_jsonl(job.out / "pairs.jsonl", pairs)
    store.write_json(job.out / "results.json", results.model_dump(mode="json"))
    store.write_json(job.out / "summary.json", {"headline": results.headline, "pairs": len(pairs)})
    label.tell_spending(job)


def _results(
    config: Comparing,
    pairs: Sequence[Pair],
    verdicts: dict[str, list[Verdict]],
    answers: Sequence[Answer],
    measures: Measures,
) -> Results:
    described = [_describe(name, algorithm, answers, measures, config) for name, algorithm in config.checkpoints]
    judges: list[JudgeInfo] = []
    comparisons: list[Comparison] = []
    for judge, name in zip(config.judges, judge_names(config.judges), strict=True):
        fingerprint = judge.fingerprint()
        by_id = {verdict.pair_id: verdict for verdict in verdicts[fingerprint]}
        in_order = [by_id[pair.id] for pair in pairs]
        judges.append(
            describe_judge(name, fingerprint, how=_how(judge, config.labelled), pairs=pairs, verdicts=in_order)
        )
        comparisons += _comparisons(name, described, pairs, by_id, config)
    return Results.of(
        strengths=tuple(_strengths(config, pairs, verdicts)),
        checkpoints=described,
        judges=judges,
        comparisons=comparisons,
        prompts=len({pair.prompt.id for pair in pairs}),
        confidence=config.confidence,
        labelling_judge=config.labelled_by,
    )


def _comparisons(
    judge: str,
    described: Sequence[Checkpoint],
    pairs: Sequence[Pair],
    by_id: dict[str, Verdict],
    config: Comparing,
) -> list[Comparison]:
    """One judge's, of every two checkpoints of which it decided anything: people may have voted on some only.

    Raises:
        JudgeError: it decided nothing at all.
    """
    found = []
    for other, one in itertools.combinations(described, 2):
        rows = list(_rows(pairs, by_id, one.name, other.name))
        if any(p is not None for _, p in rows):
            found.append(compare_checkpoints(judge, one, other, rows, confidence=config.confidence, seed=config.seed))
    if not found:
        raise JudgeError(
            f"judge {judge!r}: it abstained on all {len(pairs)} verdicts, so there is nothing to compare; read the "
            "reasons in its verdicts, or compare with another judge"
        )
    return found


def _strengths(
    config: Comparing, pairs: Sequence[Pair], verdicts: dict[str, list[Verdict]]
) -> Iterator[bradley_terry.Strengths]:
    """Every judge's, with the base as the anchor."""
    names, anchor = [name for name, _ in config.checkpoints], _anchor(config)
    by_id = {pair.id: pair for pair in pairs}
    for judge, name in zip(config.judges, judge_names(config.judges), strict=True):
        said = [(by_id[verdict.pair_id], verdict.p_a) for verdict in verdicts[judge.fingerprint()]]
        rows = [(pair.prompt.id, pair.a.source, pair.b.source, p) for pair, p in said if p is not None]
        seed = seed_of(config.seed, "strengths", name)
        found = bradley_terry.strengths(name, names, anchor, rows, confidence=config.confidence, seed=seed)
        if found is not None:
            yield found


def _anchor(config: Comparing) -> str:
    """The base, or the first checkpoint where that is not compared: what the others are measured against."""
    bases = [name for name, algorithm in config.checkpoints if algorithm == BASE]
    return bases[0] if bases else config.checkpoints[0][0]


def _describe(
    name: str, algorithm: str, answers: Sequence[Answer], measures: Measures, config: Comparing
) -> Checkpoint:
    own = [each for each in answers if each.response.source == name]
    responses = generate.responses_by_prompt(own)
    found = describe(name, algorithm, responses, confidence=config.confidence, seed=config.seed)
    rows = [(each.nll, each.tokens) for each in measures.readings if each.source == name and each.tokens]
    seed = seed_of(config.seed, "perplexity", name)
    text = perplexity(rows, confidence=config.confidence, seed=seed) if rows else None
    return found.model_copy(update={"rewards": tuple(_rewards(name, measures, config)), "perplexity": text})


def _rewards(name: str, measures: Measures, config: Comparing) -> Iterator[RewardScore]:
    for model in dict.fromkeys(each.model for each in measures.scores):
        scores = [each for each in measures.scores if each.model == model]
        base = [each.score for each in scores if each.source == _anchor(config)]
        own = [(each.prompt_id, each.score) for each in scores if each.source == name]
        seed = seed_of(config.seed, "reward", model, name)
        yield reward_score(model, own, base, confidence=config.confidence, seed=seed)


def _rows(pairs: Sequence[Pair], by_id: dict[str, Verdict], one: str, other: str) -> Iterator[tuple[str, float | None]]:
    """(prompt, P(`one` is better)) of every match of the two."""
    for pair in pairs:
        if {pair.a.source, pair.b.source} == {one, other}:
            p_a = by_id[pair.id].p_a
            yield pair.prompt.id, p_a if p_a is None or pair.a.source == one else 1.0 - p_a


def _matches(config: Comparing, job: Job) -> list[Pair]:
    """For each prompt and sample, every two checkpoints' answers, prompt by prompt.

    Equal texts are asked about too: they are a tie. Sides are those of the pair as the judges see it.
    """
    prompts = {prompt.id: prompt for prompt in store.read_jsonl(job.inputs["answers"] / "prompts.jsonl", Prompt)}
    found: dict[tuple[str, int], dict[str, Response]] = {}
    for each in _answers(job):
        found.setdefault((each.prompt_id, each.response.index), {})[each.response.source] = each.response
    names = [name for name, _ in config.checkpoints]
    pairs = [
        Pair.of(prompts[prompt_id], responses[one], responses[other])
        for (prompt_id, _), responses in sorted(found.items())
        for one, other in itertools.combinations(names, 2)
    ]
    return [pair if _said(pair.a) == _said(_unsigned(pair).a) else pair.swap() for pair in pairs]


def _said(response: Response) -> tuple[Any, ...]:
    return (response.text, response.finished)


def _unsigned(pair: Pair) -> Pair:
    """The pair without its authors, as a judge is shown it: what it says must not turn on a name, and whoever compares
    the same answers under other names must not pay for it again."""
    one, other = (each.model_copy(update={"source": "", "index": 0}) for each in (pair.a, pair.b))
    return Pair.of(pair.prompt, one, other)


def _blind(pairs: Sequence[Pair]) -> dict[tuple[Any, ...], Pair]:
    """What the judges are asked, each question once, in the order of the pairs."""
    return {_question(pair): _unsigned(pair) for pair in pairs}


def _question(pair: Pair) -> tuple[Any, ...]:
    """What tells two questions apart: two pairs with the same texts are one."""
    return (pair.prompt.id, _said(pair.a), _said(pair.b))


def _verdicts(judge: JudgeConfig, pairs: Sequence[Pair], job: Job, budget_usd: float | None) -> list[Verdict]:
    """A judge's verdict on every pair."""
    asked = _blind(pairs)
    said = dict(zip(asked, label.judge_all(judge, asked.values(), job, budget_usd), strict=True))
    return [said[_question(pair)].model_copy(update={"pair_id": pair.id}) for pair in pairs]


def _answers(job: Job) -> list[Answer]:
    return list(store.read_jsonl(job.inputs["answers"] / "answers.jsonl", Answer))


# ---- the report


def report_finish(job: Job) -> None:
    """Write public/report.html, report.md and results.json."""
    config = Reporting.model_validate(job.options["config"])
    every, variants = _rounds(job, config.steps), _variants(job, config.variants)
    others = _runs(job, config.origins) or (variants if _learned_apart(variants) else {})
    last, results = every[-1], [_results_of(each) for each in every]
    learned = others or {f"In round {place}" if len(every) > 1 else "": each for place, each in enumerate(every, 1)}
    background = _with_inputs_of(next(iter(others.values()), last), last)
    # Labels and exam of one run can be shown as they are; of several only what is wrong with them is told.
    shown = last if len(others) > 1 else background
    exam, against_people = label.examined(shown), people.agreement_of(shown, results[-1].judges)
    results[-1] = adjustments.adjusted(background, results[-1], exam, against_people)
    trained = {**dict(_trained(job, config.steps)), **_trained_elsewhere(config.origins)}
    results = [_with_costs(each, trained) for each in results]
    held_out = dict(_held_out(trained))
    data = ReportData(
        title=config.title,
        recipe_yaml=config.recipe_yaml,
        results=results[-1].model_copy(update={"exam": exam.model_dump(mode="json") if exam else None}),
        rounds=tuple(results) if len(results) > 1 else (),
        exam=exam,
        labels=_labels(shown) if "label" in shown.inputs else None,
        findings=tuple(dict.fromkeys(_findings([*variants.values()] or ([shown] if others else every)))),
        people=people.of(shown),
        against_people=against_people,
        curves={name: _curve(path) for name, path in trained.items()},
        reward_models=held_out,
        steps=(
            *(_step_time(f"{each.run}/{each.step}", each.folder) for each in config.origins),
            *(_step_time(name, job.inputs[name]) for name in config.steps),
        ),
        spending=tuple(spent for name in config.steps for spent in provenance.spending(job.inputs[name])),
        **_environment(last),
        alarms=(*_exam_alarms(learned), *_training_alarms(trained, held_out)),
        warnings=(
            *_warnings(results[-1], list(_unexamined(learned.values()))),
            *_against_people(against_people),
            *_inexact(trained),
        ),
        between_judges=_between_judges(last, results[-1]),
        samples=tuple(_samples(last, results[-1])),
        kept_at=tuple("/".join((last.inputs[step] / name).parts[-4:]) for step, name in KEPT),
    )
    for name, text in render(data).items():
        store.make_dirs(job.out / "public")
        store.write_text(job.out / "public" / name, text)
    store.write_json(job.out / "summary.json", {"headline": results[-1].headline})


def _rounds(job: Job, steps: Sequence[str]) -> list[Job]:
    """The job with the steps of each round, the first one first, called as they are in the first."""
    found: dict[int, dict[str, Path]] = {}
    for name in steps:
        number, plain = place_of(name)
        found.setdefault(number, {})[plain] = job.inputs[name]
    return [replace(job, inputs=inputs) for inputs in found.values()]


def _runs(job: Job, origins: Sequence[Origin]) -> dict[str, Job]:
    """The job with the steps of each run whose checkpoints are compared, by the run's name."""
    found: dict[str, dict[str, Path]] = {}
    for each in origins:
        found.setdefault(each.run, {})[each.step] = each.folder
    return {run: replace(job, inputs=inputs) for run, inputs in found.items()}


def _variants(job: Job, variants: Mapping[str, Mapping[str, str]]) -> dict[str, Job]:
    """The job with the steps of each variant of a sweep, called as they are in a run of it alone."""
    return {
        variant: replace(job, inputs={plain: job.inputs[name] for plain, name in steps.items()})
        for variant, steps in variants.items()
    }


def _learned_apart(variants: Mapping[str, Job]) -> bool:
    """Whether variants learned from labels of their own, so that no labels and no exam are those of all."""
    return len({(each.inputs.get("exam"), each.inputs.get("label")) for each in variants.values()}) > 1


def _with_inputs_of(before: Job, last: Job) -> Job:
    return replace(last, inputs={**before.inputs, **last.inputs})


def _trained_elsewhere(origins: Sequence[Origin]) -> dict[str, Path]:
    """Name and folder of what each train step of other runs made."""
    return {each.name: each.folder for each in origins if place_of(each.step)[1].startswith("train.")}


def _results_of(job: Job) -> Results:
    return Results.model_validate_json((job.inputs["compare"] / "results.json").read_text(encoding="utf-8"))


def _trained(job: Job, steps: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Name and folder of what each train step made, in every round."""
    for name in steps:
        number, plain = place_of(name)
        if plain.startswith("train."):
            yield policy_of(number, plain.removeprefix("train.")), job.inputs[name]


def _with_costs(results: Results, trained: Mapping[str, Path]) -> Results:
    """The results with what each checkpoint took; not the compare step's, whose bytes know no clock."""
    told = {name: provenance.cost(path) for name, path in trained.items()}
    checkpoints = [each.model_copy(update={"cost": told.get(each.name)}) for each in results.checkpoints]
    return results.model_copy(update={"checkpoints": tuple(checkpoints)})


def _findings(rounds: Sequence[Job]) -> Iterator[Finding]:
    for job in rounds:
        for name in DOCTORS:
            yield from doctor.read(job.inputs[name]) if name in job.inputs else ()


def _environment(job: Job) -> dict[str, Any]:
    told = dict(provenance.of(job.inputs["compare"])["environment"])
    versions = told.pop("versions")
    return {"versions": versions, "hardware": {name.replace("_", " "): str(value) for name, value in told.items()}}


def _labels(job: Job) -> Labels:
    summary = store.read_json(job.inputs["label"] / "summary.json")
    generated = store.read_json(job.inputs["generate"] / "summary.json")
    return Labels(
        judge=summary["judge"],
        prompts=summary["prompts"],
        # People's pairs are as they came: nobody drew a number of answers.
        candidates=round(generated["answers"] / generated["prompts"]) if "answers" in generated else None,
        pairs=summary["pairs"],
        decided=summary["decided"],
        ties=summary["ties"],
        abstained=summary.get("abstained", {}),
        confidence=tuple(summary["confidence"]),
        findings=summary.get("judge_summary", {}),
    )


def _alarms(exam: ExamReport | None) -> Iterator[str]:
    if exam is not None and not exam.passed:
        yield (
            f"{exam.judge} failed its exam and labelled the training data all the same (exam.enforce is false): "
            "what was trained on its labels is not to be trusted."
        )
        yield from exam.causes


def _exam_alarms(learned: Mapping[str, Job]) -> Iterator[str]:
    for where, job in learned.items():
        for alarm in _alarms(label.examined(job)):
            yield f"{where}: {alarm}" if where else alarm


def _unexamined(learned: Iterable[Job]) -> Iterator[str]:
    """Judges that labelled without an exam. People have none, and a recipe without labels no judge."""
    for job in learned:
        if "label" in job.inputs and "exam" not in job.inputs:
            judge = store.read_json(job.inputs["label"] / "summary.json")["judge"]
            if judge != crowd.NAME:
                yield judge


def _warnings(results: Results, unexamined: Sequence[str]) -> Iterator[str]:
    for name in dict.fromkeys(unexamined):
        yield f"{name} was not examined before it labelled."
    did = {judge.name: DID[how] for judge in results.judges if (how := judge.tag)}
    for name, what in did.items():
        yield f"{name} {what} and also compares: trust it less than a judge that did not."
    if did and len(did) == len(results.judges):
        what = " or ".join(dict.fromkeys(did.values()))
        yield f"Every comparing judge {what}: the policy is graded by what it was trained on."
    for name, couples in _undecided(results).items():
        yield (
            f"{name} left everything open between {' and between '.join(couples)}: these it does not compare, and they "
            "are in no table of its own."
        )
    for found in results.comparisons:
        if found.decisive and not excludes_half(found.bounds_low, found.bounds_high):
            yield (
                f"{found.one} against {found.other} is decisive by {found.judge} only without the {found.abstained} "
                f"verdicts that it left open: with them, whatever they were, the rate is somewhere in "
                f"{interval(found.bounds_low, found.bounds_high)}."
            )


def _undecided(results: Results) -> dict[str, list[str]]:
    """Judge -> every two checkpoints of which it decided nothing, of those where there are any."""
    names = [checkpoint.name for checkpoint in results.checkpoints]
    done = {(found.judge, frozenset((found.one, found.other))) for found in results.comparisons}
    found: dict[str, list[str]] = {}
    for judge in results.judges:
        for other, one in itertools.combinations(names, 2):
            if (judge.name, frozenset((one, other))) not in done:
                found.setdefault(judge.name, []).append(f"{one} and {other}")
    return found


def _against_people(found: AgreementReport | None) -> Iterator[str]:
    for name, accuracy in found.accuracy.items() if found else ():
        if accuracy.low <= 0.5:
            yield (
                f"{name} is right in {percent(accuracy.value)} {interval(accuracy.low, accuracy.high)} of the "
                f"{accuracy.n} held-out pairs that people decided, which is not better than chance: its win rates do "
                "not say what these people want."
            )


def _training_alarms(trained: dict[str, Path], held_out: dict[str, HeldOut]) -> Iterator[str]:
    for name, found in held_out.items():
        if not found.beats_chance:
            bounds = f"{percent(found.accuracy)} {interval(found.low, found.high)}"
            yield (
                f"{name} orders {bounds} of its held-out pairs as the judge did, which is not better than chance: "
                "a policy that was trained against it learned its noise."
            )
    for name, path in trained.items():
        for alarm in store.read_json(path / "summary.json").get("alarms", []):
            yield f"{name}: {alarm}"


def _inexact(trained: dict[str, Path]) -> Iterator[str]:
    for name, path in trained.items():
        for how in store.read_json(path / "summary.json").get("inexact_resume", ()):
            yield f"{name} is not what an uninterrupted training gives: {how}."


def _held_out(trained: dict[str, Path]) -> Iterator[tuple[str, HeldOut]]:
    for name, path in trained.items():
        if (path / FACTS).exists():
            yield name, HeldOut.model_validate(store.read_json(path / FACTS)["held_out"])


def _curve(path: Path) -> list[dict[str, float | None]]:
    """The numbers of metrics.jsonl; its texts are told elsewhere."""
    lines = (json.loads(line) for line in (path / "metrics.jsonl").open(encoding="utf-8"))
    return [
        {name: value for name, value in line.items() if value is None or isinstance(value, int | float)}
        for line in lines
    ]


def _samples(job: Job, results: Results) -> Iterator[Sample]:
    prompts = list(store.read_jsonl(job.inputs["answers"] / "prompts.jsonl", Prompt))
    responses = generate.responses_by_prompt(each for each in _answers(job) if each.response.index == 0)
    scores, evidence = _told(job, results)
    for prompt in prompts:
        yield Sample(
            prompt=prompt.messages,
            kind=prompt.kind,
            lang=prompt.lang,
            answers={response.source: response.text for response in responses[prompt.id]},
            finished={response.source: response.finished for response in responses[prompt.id]},
            scores=scores.get(prompt.id, {}),
            evidence=evidence.get(prompt.id, {}),
        )


def _told(job: Job, results: Results) -> tuple[Told[float | None], Told[str]]:
    """What each judge said of each prompt's first samples: P(`one` is better), and the evidence for it."""
    pairs = {pair.id: pair for pair in store.read_jsonl(job.inputs["compare"] / "pairs.jsonl", Pair)}
    names = {judge.fingerprint: judge.name for judge in results.judges}
    order = [checkpoint.name for checkpoint in results.checkpoints]
    scores: Told[float | None] = {}
    evidence: Told[str] = {}
    for verdict in store.read_jsonl(job.inputs["compare"] / "verdicts.jsonl", Verdict):
        pair, judge = pairs[verdict.pair_id], names[verdict.fingerprint]
        if pair.a.index:
            continue
        a_is_one = order.index(pair.a.source) > order.index(pair.b.source)
        one, other = (pair.a, pair.b) if a_is_one else (pair.b, pair.a)
        key = f"{one.source} vs {other.source}"
        p = verdict.p_a if verdict.p_a is None or a_is_one else 1.0 - verdict.p_a
        scores.setdefault(pair.prompt.id, {}).setdefault(judge, {})[key] = p
        evidence.setdefault(pair.prompt.id, {}).setdefault(judge, {})[key] = evidence_of(pair, verdict)
    return scores, evidence


def _between_judges(job: Job, results: Results) -> AgreementReport | None:
    """How far the comparing judges agree, where there are two."""
    if len(results.judges) < 2:
        return None
    prompts = {pair.id: pair.prompt.id for pair in store.read_jsonl(job.inputs["compare"] / "pairs.jsonl", Pair)}
    said: dict[str, dict[str, float]] = {judge.fingerprint: {} for judge in results.judges}
    for verdict in store.read_jsonl(job.inputs["compare"] / "verdicts.jsonl", Verdict):
        if verdict.p_a is not None:
            said[verdict.fingerprint][verdict.pair_id] = verdict.p_a
    raters = [Rater(name=judge.name, p=said[judge.fingerprint], asked=judge.asked) for judge in results.judges]
    return agree(raters, prompts)


def _step_time(name: str, path: Path) -> StepTime:
    told = provenance.of(path)
    return StepTime(
        name=name,
        state="done",
        seconds=told.get("wall_seconds"),
        peak_memory_bytes=told.get("peak_memory_bytes"),
    )
