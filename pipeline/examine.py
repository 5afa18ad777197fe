"""Between generating and labelling: the judge sits its exam.

It is asked about the policy's own pairs and altered answers to the same prompts, and about the gold file if there is
one; `exam.json` is what came of it, `answers.jsonl` every question with its verdict. Its verdicts on own pairs are the
ones that labelling will find in the journal, so that they are not asked for twice.

What is left out: the questions (`judges.exam`), the marks (`judges.grading`), and whether a judge that fails may label
all the same (`pipeline.label`).
"""

from pathlib import Path

from judges import exam, grading
from judges.base import AnyJudge
from judges.exam import Floors, GoldPair, Question
from pipeline import label, store
from pipeline.plugins import Config
from pipeline.records import Pair, Record, Verdict
from pipeline.worker import Job

VERSION = 2
"""Raised when a change of this file changes what comes out."""


class Examining(Config):
    """The identity of the exam step."""

    RUNTIME = frozenset({"budget_usd"})

    seed: int
    judge: AnyJudge
    prompts: int
    gold: Path | None
    floors: Floors
    budget_usd: float | None = None


class Answered(Record):
    """A line of `answers.jsonl`."""

    kind: str
    """See `judges.exam.Question`."""
    pair: Pair
    verdict: Verdict


def work(job: Job) -> None:
    """Ask this process's share of the questions, into the journal."""
    config = Examining.model_validate(job.options["config"])
    pairs = [question.pair for question in _questions(config, job)]
    label.judge_share(config.judge, pairs, job, config.budget_usd)


def finish(job: Job) -> None:
    """Write exam.json, answers.jsonl and summary.json."""
    config = Examining.model_validate(job.options["config"])
    asked = _questions(config, job)
    verdicts = list(label.judge_all(config.judge, [question.pair for question in asked], job, config.budget_usd))
    report = grading.grade(asked, verdicts, config.judge, config.floors, config.seed)
    store.write_json(job.out / "exam.json", report.model_dump(mode="json"))
    rows = zip(asked, verdicts, strict=True)
    store.write_jsonl(
        job.out / "answers.jsonl",
        (Answered(kind=question.kind, pair=question.pair, verdict=verdict) for question, verdict in rows),
    )
    store.write_json(
        job.out / "summary.json",
        {
            "judge": report.judge,
            "passed": report.passed,
            "causes": report.causes,
            "questions": report.asked,
            "temperature": report.temperature,
            "tokens_in": sum(verdict.tokens_in for verdict in verdicts),
            "tokens_out": sum(verdict.tokens_out for verdict in verdicts),
            "cost_usd": round(sum(verdict.cost_usd for verdict in verdicts), 9),
        },
    )
    label.tell_spending(job)


def _questions(config: Examining, job: Job) -> list[Question]:
    pairs = store.read_jsonl(job.inputs["generate"] / "pairs.jsonl", Pair) if config.prompts else ()
    gold = store.read_jsonl(config.gold, GoldPair) if config.gold else ()
    return exam.questions(pairs, gold, config.prompts, config.seed)
