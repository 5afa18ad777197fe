"""Stage 2: the judge says which answer of each pair is better. Ties, abstentions and confidence are kept.

Every verdict is in `verdicts.jsonl`; what is trained on is in `preferences.jsonl`. The same code judges checkpoints
against each other (`pipeline.compare`). What is left out: what a judge is (`judges`), and what the losses see
(`pipeline.views`).
"""

from collections.abc import Sequence
from typing import Literal

from judges.base import AnyJudge, Judge, JudgeConfig
from judges.cached import Cached
from pipeline import store, views
from pipeline.errors import JudgeError
from pipeline.plugins import Config
from pipeline.progress import Bar
from pipeline.recipe import LabelConfig
from pipeline.records import Pair, Preference, Verdict
from pipeline.worker import Job

VERSION = 1
"""Raised when a change of this file changes what comes out."""


class Labelling(Config):
    """The identity of the label step."""

    judge: AnyJudge
    label: LabelConfig
    pairing: Literal["best_worst", "random", "all"]


class Lazy:
    """A judge that is built when it is first asked, so that nothing loads where the journal knows every answer."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self._built: Judge | None = None

    def judge(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """See `judges.base.Judge`."""
        if self._built is None:
            self._built = self.config.build()
        return self._built.judge(pairs)


def work(job: Job) -> None:
    """Judge this process's share of the prompts, into the journal."""
    config = Labelling.model_validate(job.options["config"])
    judge_share(config.judge, _pairs(job), job)


def finish(job: Job) -> None:
    """Write verdicts.jsonl, preferences.jsonl and summary.json.

    Raises:
        JudgeError: more abstentions than the recipe allows, or nothing decided at all.
    """
    config = Labelling.model_validate(job.options["config"])
    pairs = _pairs(job)
    verdicts = judge_all(config.judge, pairs, job)
    counted = views.count(pairs, verdicts, config.label.min_confidence)
    _check(counted, config.label)
    preferences = _preferences(config, pairs, verdicts)
    if not preferences:
        raise JudgeError(f"judge {config.judge.name}: it preferred no answer to another; nothing could be trained on")
    store.write_jsonl(job.out / "verdicts.jsonl", verdicts)
    store.write_jsonl(job.out / "preferences.jsonl", preferences)
    store.write_json(
        job.out / "summary.json",
        {
            **counted.model_dump(mode="json"),
            "judge": config.judge.name,
            "judge_fingerprint": config.judge.fingerprint(),
            "prompts": len({pair.prompt.id for pair in pairs}),
            "preferences": len(preferences),
            "confidence": views.confidence_histogram(verdicts),
            "tokens_in": sum(verdict.tokens_in for verdict in verdicts),
            "tokens_out": sum(verdict.tokens_out for verdict in verdicts),
            "cost_usd": sum(verdict.cost_usd for verdict in verdicts),
        },
    )


def judge_share(config: JudgeConfig, pairs: Sequence[Pair], job: Job) -> None:
    """Judge every `world`-th prompt's pairs. All pairs of a prompt go to the judge together, whoever asks."""
    journal = store.Journal(job.cache / "journal.sqlite")
    judge = Cached(Lazy(config), config.fingerprint(), journal)
    groups = by_prompt(pairs)
    with Bar(f"{job.step} ({config.name})", total=len(groups)) as bar:
        for number, group in enumerate(groups):
            if number % job.world == job.rank:
                judge.judge(group)
                bar.at(min(len(groups), number + job.world))
    journal.close()


def judge_all(config: JudgeConfig, pairs: Sequence[Pair], job: Job) -> list[Verdict]:
    """Every verdict, sorted by pair id. Nearly all are in the journal; a call that failed is asked once more."""
    judge = Cached(Lazy(config), config.fingerprint(), store.Journal(job.cache / "journal.sqlite"))
    return sorted(judge.judge(pairs), key=lambda verdict: verdict.pair_id)


def by_prompt(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs of each prompt, longest first, in an order that depends on the pairs alone."""
    groups: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.id):
        groups.setdefault(pair.prompt.id, []).append(pair)

    def length(group: list[Pair]) -> tuple[int, str]:
        return (sum(len(pair.a.text) + len(pair.b.text) for pair in group), group[0].prompt.id)

    return sorted(groups.values(), key=length, reverse=True)


def _pairs(job: Job) -> list[Pair]:
    return sorted(store.read_jsonl(job.inputs["generate"] / "pairs.jsonl", Pair), key=lambda pair: pair.id)


def _preferences(config: Labelling, pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> list[Preference]:
    if config.pairing == "best_worst":
        extremes = views.best_worst(pairs, verdicts)
        pairs, verdicts = [pair for pair, _ in extremes], [verdict for _, verdict in extremes]
    return views.decided(pairs, verdicts, config.label.min_confidence)


def _check(counted: views.Counts, config: LabelConfig) -> None:
    abstained = sum(counted.abstained.values())
    if abstained > config.max_abstained * counted.pairs:
        reasons = ", ".join(f"{reason} {times}" for reason, times in counted.abstained.items())
        raise JudgeError(
            f"the judge left {abstained} of {counted.pairs} pairs open ({reasons}); label.max_abstained allows "
            f"{config.max_abstained:.0%}. Look at verdicts in the journal, mend the judge, or raise the limit"
        )
