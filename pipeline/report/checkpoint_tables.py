"""Tables of the checkpoints: what their answers look like, what no judge says of them, and what they took.

What is left out: who is better (`comparison_tables`).
"""

from collections.abc import Callable

from pipeline.ratings import Results
from pipeline.report.sheet import NOTHING, Sheet, duration, interval_name, memory, number, share
from pipeline.statistics.win_rate import Estimate


def checkpoint_sheet(results: Results) -> Sheet:
    columns = (
        "checkpoint", "algorithm", "KL, nats", interval_name(results), "tokens", "words", "ended itself",
        "distinct-2", "repetition", "answers",
    )  # fmt: skip
    rows = tuple(
        (
            found.name,
            found.algorithm,
            *_with_interval(found.kl, "{:.1f}".format),
            number(found.tokens_mean, 0),
            number(found.words_mean, 0),
            share(found.finished_share),
            number(found.distinct_2, 2),
            number(found.repetition, 2),
            str(found.n_answers),
        )
        for found in results.checkpoints
    )
    return Sheet("Checkpoints", columns, rows, names=2)


def measure_sheet(results: Results) -> Sheet:
    """Perplexity, what each reward model gives, and refusals: columns that some checkpoint has."""
    models = list(dict.fromkeys(each.model for found in results.checkpoints for each in found.rewards))
    names: list[str] = []
    cells: list[list[str]] = [[found.name] for found in results.checkpoints]

    def add(name: str, estimates: list[Estimate | None], text: Callable[[float], str]) -> None:
        if any(estimates):
            names.extend((name, interval_name(results)))
            for row, found in zip(cells, estimates, strict=True):
                row += _with_interval(found, text)

    add("perplexity", [found.perplexity for found in results.checkpoints], "{:.2f}".format)
    for model in models:
        scores = [{each.model: each.score for each in found.rewards}.get(model) for found in results.checkpoints]
        add(f"{model}, the score it was trained on", scores, "{:+.2f}".format)
    add("refuses", [found.refusals for found in results.checkpoints], lambda value: f"{100 * value:.1f}")
    rows = tuple(map(tuple, cells)) if names else ()
    return Sheet("Perplexity, reward and refusals", ("checkpoint", *names), rows)


def _with_interval(found: Estimate | None, text: Callable[[float], str]) -> tuple[str, str]:
    return (text(found.value), f"[{text(found.low)}, {text(found.high)}]") if found else (NOTHING, NOTHING)


def cost_sheet(results: Results) -> Sheet:
    """What each checkpoint took, beside what it came to."""
    columns = (
        "checkpoint", "stands on", "training", "peak memory", "before it", "of that labelling", "all together",
        "judges, US dollars", *(f"win rate, {judge.name}" for judge in results.judges),
    )  # fmt: skip
    rows = tuple(
        (
            found.name,
            ", ".join(took.upstream) or NOTHING,
            duration(took.training_seconds),
            memory(took.peak_memory_bytes),
            duration(took.upstream_seconds),
            duration(took.labelling_seconds),
            duration(took.training_seconds + took.upstream_seconds),
            f"{took.judge_usd:.6f}" if took.judge_usd else "0",
            *_rates(results, found.name),
        )
        for found in results.checkpoints
        if (took := found.cost)
    )
    return Sheet("What each checkpoint took", columns, rows, names=2)


def _rates(results: Results, name: str) -> list[str]:
    """Win rate against the base by each judge."""
    found = {each.judge: each.win_rate for each in results.between(name, results.base)}
    return [share(found.get(judge.name)) for judge in results.judges]
