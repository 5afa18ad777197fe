"""Stages 1 and 2 from people's votes: the pairs and labels that they bring, in the files that a policy's answers and a
judge's verdicts would be in; so nothing downstream knows the difference.

    generate   reads the files: prompts.jsonl, pairs.jsonl, votes.jsonl, thumbs.jsonl, quarantine.jsonl; the held-out
               share of the prompts goes to held_out.jsonl with what people say of it; people.json is about the voters
    people     asks the comparing judges about the held-out pairs: agreement.json
    label      puts the votes on each pair together: verdicts.jsonl, preferences.jsonl, thumbs.jsonl

What is left out: formats (`pipeline.importers`) and what votes amount to (`pipeline.crowd`).
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from judges.base import AnyJudge, judge_names
from pipeline import crowd, label, store, votes
from pipeline.agreement import AgreementReport, Rater, agree
from pipeline.crowd import People
from pipeline.errors import JudgeError
from pipeline.importers.base import Aggregate
from pipeline.importers.collect import Collected
from pipeline.plugins import Config
from pipeline.ratings import JudgeInfo
from pipeline.recipe import AnnotationsConfig, LabelConfig
from pipeline.records import Pair, Record, Sample, Thumb, Vote, seed_of
from pipeline.worker import Job

VERSION = 3
"""Raised when a change of this file changes what comes out."""


class Importing(Config):
    """The identity of the generate step."""

    seed: int
    annotations: AnnotationsConfig


class Counting(Config):
    """The identity of the label step."""

    aggregate: Aggregate
    label: LabelConfig


class Checking(Config):
    """The identity of the step that checks judges against people."""

    RUNTIME = frozenset({"budget_usd"})

    seed: int
    judges: tuple[AnyJudge, ...]
    budget_usd: float | None = None


class HeldOut(Record):
    """A line of held_out.jsonl: a pair that nobody trains on."""

    pair: Pair
    p_a: float
    """Probability that people find `a` better; 0.5 is a tie."""
    sample: Sample | None = None
    """How the pair came to be shown to them, where that is known."""


# ---- generate


def import_finish(job: Job) -> None:
    """Write everything that the files say; see the top of this file.

    Raises:
        DataError: a file cannot be read, too many rows are bad, or nothing is left.
    """
    config = Importing.model_validate(job.options["config"])
    found = votes.read(config.annotations)
    trained, held_out = split(found, config.annotations, config.seed)
    store.write_bytes(job.out / "prompts.jsonl", (found.prompts[name] + b"\n" for name in trained))
    store.write_bytes(job.out / "pairs.jsonl", found.lines(trained))
    store.write_jsonl(job.out / "votes.jsonl", found.votes(trained))
    store.write_jsonl(job.out / "held_out.jsonl", _held_out(found, held_out, config.annotations.aggregate))
    store.write_jsonl(job.out / "quarantine.jsonl", found.quarantine)
    kept = set(trained)
    thumbs = [thumb for thumb in found.thumbs if thumb.prompt.id in kept]
    if thumbs:
        store.write_jsonl(job.out / "thumbs.jsonl", thumbs)
    people = crowd.people(found.votes(), found.prompt_of())
    store.write_json(job.out / "people.json", people.model_dump(mode="json"))
    store.write_json(job.out / "summary.json", _summary(found, trained, held_out))


def split(found: Collected, annotations: AnnotationsConfig, seed: int) -> tuple[list[str], list[str]]:
    """The ids of the prompts that are trained on, and of those that are held out: by a hash of each."""
    names = list(itertools.islice(found.prompts, annotations.limit))
    held_out = [name for name in names if seed_of(seed, "people", name) < annotations.held_out * 2**63]
    kept = set(held_out)
    return [name for name in names if name not in kept], held_out


def held_out_pairs(annotations: AnnotationsConfig, seed: int) -> list[Pair]:
    """The pairs that judges will be asked about."""
    found = votes.read(annotations)
    return [Pair.model_validate_json(line) for line in found.lines(split(found, annotations, seed)[1])]


def _held_out(found: Collected, prompts: Sequence[str], rule: Aggregate) -> list[HeldOut]:
    verdicts = {verdict.pair_id: verdict.p_a for verdict in crowd.verdicts(found.votes(), rule)}
    samples = {pair.id: crowd.sample(cast) for pair, cast in found.judgements()}
    pairs = (Pair.model_validate_json(line) for line in found.lines(prompts))
    return [
        HeldOut(pair=pair, p_a=p, sample=samples[pair.id]) for pair in pairs if (p := verdicts[pair.id]) is not None
    ]


def _summary(found: Collected, trained: Sequence[str], held_out: Sequence[str]) -> dict[str, object]:
    return {
        "imported": found.counts().model_dump(mode="json"),
        "prompts": len(trained),
        "pairs": sum(1 for _ in found.lines(trained)),
        "held_out_prompts": len(held_out),
        "held_out_pairs": sum(1 for _ in found.lines(held_out)),
    }


# ---- people


def check_work(job: Job) -> None:
    """Ask this process's share of the questions, into the journal."""
    config = Checking.model_validate(job.options["config"])
    pairs = [each.pair for each in _asked(job)]
    for judge in config.judges:
        label.judge_share(judge, pairs, job, config.budget_usd)


def check_finish(job: Job) -> None:
    """Write agreement.json and summary.json."""
    config = Checking.model_validate(job.options["config"])
    asked = _asked(job)
    pairs = [each.pair for each in asked]
    raters = []
    for judge, name in zip(config.judges, judge_names(config.judges), strict=True):
        verdicts = list(label.judge_all(judge, pairs, job, config.budget_usd))
        p = {verdict.pair_id: verdict.p_a for verdict in verdicts if verdict.p_a is not None}
        raters.append(Rater(name=name, p=p, asked=len(pairs), fingerprint=judge.fingerprint()))
    prompts = {pair.id: pair.prompt.id for pair in pairs}
    said = {each.pair.id: crowd.says(each.p_a) for each in asked}
    doubted = {each.pair.id for each in asked if each.sample == "unsure"}
    report = agree(raters, prompts, said, doubted=doubted, seed=config.seed)
    store.write_json(job.out / "agreement.json", report.model_dump(mode="json"))
    right = {name: found.value for name, found in report.accuracy.items()}
    store.write_json(job.out / "summary.json", {"pairs": len(pairs), "right": right})
    label.tell_spending(job)


def _asked(job: Job) -> list[HeldOut]:
    return list(store.read_jsonl(job.inputs["generate"] / "held_out.jsonl", HeldOut))


# ---- label


def label_finish(job: Job) -> None:
    """Write verdicts.jsonl, preferences.jsonl, thumbs.jsonl (if there are any) and summary.json.

    Raises:
        JudgeError: nobody preferred an answer to another, and there are no thumbs.
    """
    config = Counting.model_validate(job.options["config"])
    generated = job.inputs["generate"]
    verdicts = crowd.verdicts(store.read_jsonl(generated / "votes.jsonl", Vote), config.aggregate)
    told = label.keep(job, verdicts, config.label, pairing="all")
    thumbs = _thumbs(generated / "thumbs.jsonl")
    if thumbs:
        store.write_jsonl(job.out / "thumbs.jsonl", thumbs)
    elif not told["preferences"]:
        raise JudgeError("the votes prefer no answer to another; nothing could be trained on")
    people = of(job)
    alpha = people.alpha.value if people and people.alpha else None
    judge = {"judge": crowd.NAME, "aggregate": config.aggregate, "alpha": alpha, "thumbs": len(thumbs)}
    store.write_json(job.out / "summary.json", {**told, **judge})


def _thumbs(path: Path) -> list[Thumb]:
    return list(store.read_jsonl(path, Thumb)) if path.exists() else []


# ---- for the report


def of(job: Job) -> People | None:
    """What the votes say about whoever cast them; None: a judge labelled, or nobody."""
    if "generate" not in job.inputs:
        return None
    path = job.inputs["generate"] / "people.json"
    return People.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def agreement_of(job: Job, judges: Iterable[JudgeInfo]) -> AgreementReport | None:
    """How far the comparing judges agree with people, as far as it was these that were asked; None: none was."""
    if "people" not in job.inputs:
        return None
    text = (job.inputs["people"] / "agreement.json").read_text(encoding="utf-8")
    return AgreementReport.model_validate_json(text).of({judge.fingerprint: judge.name for judge in judges})
