"""Tables of the run: findings, time, memory, money, reward models, and where the training curves begin and end.

What is left out: the curves as drawings (`curves`).
"""

from collections.abc import Iterable, Sequence

from judges.ledger import Spent
from pipeline.algorithms.held_out import HeldOut
from pipeline.findings import Finding
from pipeline.ratings import interval, percent
from pipeline.report.curves import finite, metrics_of
from pipeline.report.data import StepTime
from pipeline.report.sheet import NOTHING, Sheet, duration, memory, number, short


def doctor_sheet(findings: Sequence[Finding]) -> Sheet:
    """What the doctor found, errors first."""
    order = {"error": 0, "warning": 1, "info": 2}
    columns = ("level", "check", "where", "found", "what to do")
    rows = tuple(
        (each.level, each.check, each.where, each.what, each.remedy or NOTHING)
        for each in sorted(findings, key=lambda each: order[each.level])
    )
    return Sheet("Doctor", columns, rows, names=5)


def step_sheet(steps: Iterable[StepTime]) -> Sheet:
    rows = tuple((step.name, step.state, duration(step.seconds), memory(step.peak_memory_bytes)) for step in steps)
    return Sheet("Time and memory", ("step", "state", "time", "peak memory"), rows, names=2)


def spending_sheet(spending: Iterable[Spent]) -> Sheet:
    columns = ("step", "judge", "calls", "of them failed", "tokens in", "tokens out", "US dollars")
    rows = tuple(
        (
            one.step,
            one.judge,
            str(one.calls),
            str(one.failed),
            str(one.tokens_in),
            str(one.tokens_out),
            f"{one.usd:.6f}",
        )
        for one in spending
    )
    return Sheet("Spending", columns, rows, names=2)


def reward_sheet(found: dict[str, HeldOut]) -> Sheet:
    columns = (
        "step", "better than chance", "accuracy", "interval", "pairs", "prompts", "longer wins", "interval",
        "Pearson, length", "Spearman, length", "calibration error", "Brier", "temperature", "interval",
        "calibration error at it",
    )  # fmt: skip
    rows = tuple(
        (
            name,
            "yes" if one.beats_chance else "no",
            percent(one.accuracy),
            interval(one.low, one.high),
            str(one.pairs),
            str(one.prompts),
            percent(one.longer_wins),
            interval(one.longer_wins_low, one.longer_wins_high),
            number(one.pearson, 2),
            number(one.spearman, 2),
            number(one.ece, 3),
            number(one.brier, 3),
            f"{one.temperature:.3g}",
            f"[{one.temperature_low:.3g}, {one.temperature_high:.3g}]",
            number(one.ece_calibrated, 3),
        )
        for name, one in found.items()
    )
    return Sheet("Reward models on held-out pairs", columns, rows, names=2)


def curve_sheet(curves: dict[str, list[dict[str, float | None]]]) -> Sheet:
    rows = []
    for name, log in curves.items():
        for metric in metrics_of(log):
            values = [value for _, value in finite(log, metric)]
            if values:
                shown = (short(value) for value in (values[0], values[-1], min(values), max(values)))
                rows.append((name, metric, *shown))
    return Sheet("Training", ("step", "metric", "first", "last", "lowest", "highest"), tuple(rows), names=2)
