"""Stage 2: the judge says which answer of each pair is better. Ties, abstentions and confidence are kept.

A judge that failed its exam does not label, unless the recipe says so; one with a gold file is calibrated by it. The
journal keeps what the judge said, and `p_raw` in a verdict's evidence what it was before.

Every verdict is in `verdicts.jsonl`, in the order of the pairs; what is trained on is in `preferences.jsonl`. Pairs
pass through prompt by prompt, so that a hundred thousand of them need no more memory than a thousand. The same code
judges checkpoints against each other (`pipeline.compare`). What is left out: what a judge is (`judges`), and what the
losses see (`pipeline.views`).
"""

import gc
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from judges import cached
from judges.base import AnyJudge, JudgeConfig, Session
from judges.grading import ExamReport
from judges.ledger import bill
from pipeline import store, views, worker
from pipeline.errors import DataError, JudgeError
from pipeline.plugins import Config
from pipeline.progress import Bar
from pipeline.recipe import LabelConfig
from pipeline.records import Pair, Preference, Verdict
from pipeline.worker import Job

VERSION = 1
"""Raised when a change of this file changes what comes out."""

WINDOW = 4096
"""Pairs whose verdicts are read from the journal at once."""

T = TypeVar("T")


class Labelling(Config):
    """The identity of the label step."""

    RUNTIME = frozenset({"budget_usd"})

    judge: AnyJudge
    label: LabelConfig
    pairing: Literal["best_worst", "random", "all"]
    enforce: bool = True
    """Whether a judge that failed its exam is refused."""
    budget_usd: float | None = None


def work(job: Job) -> None:
    """Judge this process's share of the prompts, into the journal.

    Raises:
        JudgeError: the judge failed its exam.
    """
    config = Labelling.model_validate(job.options["config"])
    _admit(examined(job), config)
    path = job.inputs["generate"] / "pairs.jsonl"
    pairs = store.read_jsonl(path, Pair, where=_Turn(job))
    _judge(config.judge, pairs, store.count_lines(path), job, config.budget_usd)


def finish(job: Job) -> None:
    """Write verdicts.jsonl, preferences.jsonl and summary.json.

    Raises:
        JudgeError: the judge failed its exam, left more open than the recipe allows, or decided nothing at all.
    """
    config = Labelling.model_validate(job.options["config"])
    exam = examined(job)
    _admit(exam, config)
    said = judge_all(config.judge, _pairs(job.inputs["generate"] / "pairs.jsonl"), job, config.budget_usd)
    told = keep(job, map(exam.calibrate, said) if exam else said, config.label, config.pairing)
    if not told["preferences"]:
        raise JudgeError(f"judge {config.judge.name}: it preferred no answer to another; nothing could be trained on")
    judge = {
        "judge": config.judge.name,
        "judge_fingerprint": config.judge.fingerprint(),
        "judge_summary": config.judge.summary(store.read_jsonl(job.out / "verdicts.jsonl", Verdict)),
    }
    store.write_json(job.out / "summary.json", {**told, **judge})
    tell_spending(job)


def keep(job: Job, said: Iterable[Verdict], config: LabelConfig, pairing: str) -> dict[str, Any]:
    """Write verdicts.jsonl and preferences.jsonl, and say in numbers what became of the pairs.

    Args:
        said: a verdict on each pair of the generate step, in its order.

    Raises:
        JudgeError: more pairs were left open than the recipe allows.
    """
    pairs, verdicts = job.inputs["generate"] / "pairs.jsonl", job.out / "verdicts.jsonl"
    store.write_jsonl(verdicts, said)
    summary = _summary(config.min_confidence, _judged(pairs, verdicts))
    _check(views.Counts.model_validate({name: summary[name] for name in views.Counts.model_fields}), config)
    kept = _Counted(_preferences(config.min_confidence, pairing, _judged(pairs, verdicts)))
    store.write_jsonl(job.out / "preferences.jsonl", kept)
    return {**summary, "preferences": kept.count}


def examined(job: Job) -> ExamReport | None:
    """What the exam found; None: the recipe wants none."""
    if "exam" not in job.inputs:
        return None
    return ExamReport.model_validate_json((job.inputs["exam"] / "exam.json").read_text(encoding="utf-8"))


def _admit(exam: ExamReport | None, config: Labelling) -> None:
    if exam is not None and config.enforce and not exam.passed:
        causes = "\n  ".join(exam.causes)
        raise JudgeError(
            f"judge {exam.judge} failed its exam, so it may not label:\n  {causes}\n"
            "Take another judge or mend this one; exam.enforce=false lets it label all the same, and the report says so"
        )


def judge_share(config: JudgeConfig, pairs: Sequence[Pair], job: Job, budget_usd: float | None) -> None:
    """Judge every `world`-th prompt's pairs. All pairs of a prompt go to the judge together, whoever asks.

    Args:
        pairs: those of one prompt one after the other.
    """
    groups = (group for number, group in enumerate(by_prompt(pairs)) if number % job.world == job.rank)
    _judge(config, itertools.chain.from_iterable(groups), len(pairs), job, budget_usd)


def _judge(config: JudgeConfig, share: Iterable[Pair], total: int, job: Job, budget_usd: float | None) -> None:
    """Judge this process's share of `total` pairs, into the journal."""
    judge = cached.member(config, session_of(job, budget_usd))
    done = 0
    with Bar(f"{job.step} ({config.name})", total=total) as bar:
        windows = _windows(by_prompt(share), config.window)
        for window in _ahead(windows) if config.remote else windows:
            asked = list(itertools.chain.from_iterable(window))
            judge.judge(asked)
            done += len(asked) * job.world
            bar.at(min(total, done))


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each made while the one before it is being used: a judge behind an API leaves the processor idle."""
    # Thousands of replies are under way at once and none is part of a cycle: looking for cycles costs a tenth.
    gc.set_threshold(100_000, 50, 100)
    with ThreadPoolExecutor(1) as maker:
        iterator = iter(items)
        coming = maker.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, iterator, None)
            yield item


class _Turn:
    """Tells whether a pair is to a prompt of this process's share, before it is made a Pair: with many processes most
    of the file is somebody else's."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.prompt: str | None = None
        self.number = -1

    def __call__(self, told: Any) -> bool:
        prompt = told["prompt"]["id"]
        if prompt != self.prompt:
            self.prompt, self.number = prompt, self.number + 1
        return self.number % self.job.world == self.job.rank


def judge_all(config: JudgeConfig, pairs: Iterable[Pair], job: Job, budget_usd: float | None) -> Iterator[Verdict]:
    """Every verdict, in order. Nearly all are in the journal; a call that failed is asked once more."""
    judge = cached.member(config, session_of(job, budget_usd))
    for window in _windows(by_prompt(pairs), max(WINDOW, config.window)):
        yield from judge.judge(list(itertools.chain.from_iterable(window)))


def session_of(job: Job, budget_usd: float | None) -> Session:
    """What a judge of this step is built with."""
    return Session(
        journal=job.cache / store.JOURNAL,
        run=job.run,
        step=job.step,
        making=job.making,
        budget_usd=budget_usd,
        processes=job.world,
    )


def tell_spending(job: Job) -> None:
    """What this step's calls were charged, attempts that failed included, for the step's provenance. What it was
    charged under another judge is told of its labels, and not of these."""
    rows = [line._asdict() for line in bill(job.cache / store.JOURNAL, job.run, job.making)]
    if rows:
        worker.tell(job, spending=rows)


def by_prompt(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """The pairs of each prompt, in order.

    Raises:
        DataError: a prompt comes up again after another one: its pairs could not be judged together.
    """
    seen: set[str] = set()
    for name, group in itertools.groupby(pairs, key=lambda pair: pair.prompt.id):
        if name in seen:
            raise DataError(f"pairs: those of prompt {name!r} are not one after the other; sort the file by prompt")
        seen.add(name)
        yield list(group)


def _windows(groups: Iterable[list[T]], size: int) -> Iterator[list[list[T]]]:
    """Groups together until they hold `size` items; no group is divided."""
    window: list[list[T]] = []
    held = 0
    for group in groups:
        window.append(group)
        held += len(group)
        if held >= size:
            yield window
            window, held = [], 0
    if window:
        yield window


def _pairs(path: Path) -> Iterator[Pair]:
    return store.read_jsonl(path, Pair)


def _judged(pairs: Path, verdicts: Path) -> Iterator[tuple[list[Pair], list[Verdict]]]:
    """The pairs of each prompt with their verdicts, from files in the same order."""
    answers = store.read_jsonl(verdicts, Verdict)
    for group in by_prompt(_pairs(pairs)):
        yield group, list(itertools.islice(answers, len(group)))


def _summary(min_confidence: float, judged: Iterable[tuple[list[Pair], list[Verdict]]]) -> dict[str, object]:
    """What became of the pairs, and what it took."""
    counted, prompts = views.Counts(pairs=0, decided=0, ties=0, below_confidence=0), 0
    confidence = views.confidence_histogram([])
    tokens_in, tokens_out, cost_usd = 0, 0, 0.0
    for pairs, verdicts in judged:
        confidence = [sum(bars) for bars in zip(confidence, views.confidence_histogram(verdicts), strict=True)]
        counted, prompts = counted + views.count(pairs, verdicts, min_confidence), prompts + 1
        tokens_in += sum(verdict.tokens_in for verdict in verdicts)
        tokens_out += sum(verdict.tokens_out for verdict in verdicts)
        cost_usd += sum(verdict.cost_usd for verdict in verdicts)
    return {
        **counted.model_dump(mode="json"),
        "prompts": prompts,
        "confidence": confidence,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost_usd": round(cost_usd, 9),
    }


def _preferences(
    min_confidence: float, pairing: str, judged: Iterable[tuple[list[Pair], list[Verdict]]]
) -> Iterator[Preference]:
    for pairs, verdicts in judged:
        if pairing == "best_worst":
            extremes = views.best_worst(pairs, verdicts)
            pairs, verdicts = [pair for pair, _ in extremes], [verdict for _, verdict in extremes]
        yield from views.decided(pairs, verdicts, min_confidence)


class _Counted(Iterable[T]):
    """Passes items on and knows how many they were."""

    def __init__(self, items: Iterable[T]) -> None:
        self.items = items
        self.count = 0

    def __iter__(self) -> Iterator[T]:
        for item in self.items:
            self.count += 1
            yield item


def _check(counted: views.Counts, config: LabelConfig) -> None:
    abstained = sum(counted.abstained.values())
    if abstained > config.max_abstained * counted.pairs:
        reasons = ", ".join(f"{reason} {times}" for reason, times in counted.abstained.items())
        raise JudgeError(
            f"the judge left {abstained} of {counted.pairs} pairs open ({reasons}); label.max_abstained allows "
            f"{config.max_abstained:.0%}. Look at verdicts in the journal, mend the judge, or raise the limit"
        )
