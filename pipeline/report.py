"""What a run found, for people: `report.html`, `report.md`, `results.json`, and the table that ends the command.

The HTML is one file that opens offline and asks nobody for anything. Its tables and plots are markup rendered with
autoescape; plots are SVG placed in percentages, so they fit a phone and take their colours from the page in light
and dark alike. The answers side by side are JSON that a small script puts on the page as text, never as markup.
The same input gives the same bytes: no time, no random id. What is left out: every statistic (`pipeline.statistics`)
and reading a run directory.
"""

import base64
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import Field
from rich import box
from rich.table import Table
from rich.text import Text

from judges.grading import ExamReport, GoldReport, Position, shown, wanted
from judges.ledger import Spent
from pipeline.agreement import AgreementReport
from pipeline.algorithms.held_out import HeldOut
from pipeline.crowd import People
from pipeline.findings import Finding
from pipeline.ratings import Checkpoint, Comparison, JudgeInfo, Results, interval, percent
from pipeline.records import Message, Record
from pipeline.statistics.bradley_terry import Strengths
from pipeline.statistics.judge_error import Corrected
from pipeline.statistics.length_control import LengthControlled
from pipeline.statistics.win_rate import Estimate

NOTHING = "–"
"""Stands in a table for a number that is not known."""
MAX_POINTS = 400
"""Points of one training curve; a longer curve keeps the extremes of each stretch."""

CURVES = (
    "loss", "rewards/accuracies", "rewards/margins", "score", "reward", "kl", "entropy", "length", "ended",
    "rewards", "logps", "grad_norm",
)  # fmt: skip
"""Order of the training curves that everybody looks for. Others follow by name."""
EVALUATED = "eval_"
"""What the name of a metric begins with that was measured on held-out examples while training went on."""
TONES = {"chosen": "gain", "rejected": "loss"}
"""Colours of the two lines that share a drawing."""
REWARDS = ("score", "reward")
"""What is drawn against the divergence from the reference where both are logged: the first of these."""
NOT_CURVES = frozenset({"step", "epoch", "episodes", "total_flos", "num_tokens"})
"""Bookkeeping that counts up whatever happens."""


class Labels(Record):
    """What labelling the training data came to."""

    judge: str
    prompts: int
    candidates: int | None = None
    """Answers to each prompt. None: the pairs are people's."""
    pairs: int
    decided: int
    ties: int
    abstained: dict[str, int] = Field(default_factory=dict)
    """Reason -> count."""
    confidence: tuple[int, ...] = ()
    """Decided pairs by confidence, in bins of equal width from 0.5 to 1."""
    findings: dict[str, float] = Field(default_factory=dict)
    """What the judge tells of itself (`judges.base.JudgeConfig.summary`); `..._rate` is a share."""


class StepTime(Record):
    """What one step of the run took."""

    name: str
    state: str
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class Sample(Record):
    """One held-out prompt with every checkpoint's answer and every judge's scores."""

    prompt: tuple[Message, ...]
    kind: str = ""
    lang: str = ""
    answers: dict[str, str]
    """Checkpoint -> text."""
    finished: dict[str, bool | None] = Field(default_factory=dict)
    """Checkpoint -> whether the answer ended by itself."""
    scores: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """Judge -> `one vs other` -> P(`one` is better), or None where the judge abstained."""


class ReportData(Record):
    """Everything a report is made of."""

    title: str
    recipe_yaml: str
    """The resolved recipe."""
    results: Results
    """Of the last round, if there are several."""
    rounds: tuple[Results, ...] = ()
    """Of every round, the first one first; empty where there is one."""
    labels: Labels | None = None
    curves: dict[str, list[dict[str, float | None]]] = Field(default_factory=dict)
    """Train step -> its log, one mapping an entry: `step` and any metrics."""
    reward_models: dict[str, HeldOut] = Field(default_factory=dict)
    """Train step -> how its reward model did on held-out pairs."""
    steps: tuple[StepTime, ...] = ()
    spending: tuple[Spent, ...] = ()
    """What paid judges took; empty where none was asked."""
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str] = Field(default_factory=dict)
    exam: ExamReport | None = None
    """What the labelling judge's exam found. None: it was not examined."""
    findings: tuple[Finding, ...] = ()
    """What the doctor found before anything was loaded or trained."""
    people: People | None = None
    """Who voted, where people labelled."""
    against_people: AgreementReport | None = None
    """How the comparing judges do on votes that nobody was trained on."""
    alarms: tuple[str, ...] = ()
    """What makes the whole run doubtful; above the warnings, and louder."""
    warnings: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()


class Sheet(NamedTuple):
    """A table of texts, the same in HTML and in Markdown. The first `names` columns are words, the rest numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


class Axis(NamedTuple):
    """A linear scale with its ticks; places are percentages of the drawing."""

    low: float
    high: float
    ticks: tuple[float, ...]
    label: Callable[[float], str]

    def at(self, value: float) -> float:
        """Place of a value from the left, 0 to 100; what lies outside is put on the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)

    def up(self, value: float) -> float:
        """Place of a value from the top, as SVG counts."""
        return round(100 - self.at(value), 2)


def render(data: ReportData) -> dict[str, str]:
    """File name -> text of the three files."""
    sheets = _sheets(data)
    return {
        "report.html": _html(data, sheets),
        "report.md": _markdown(data, sheets),
        "results.json": data.results.model_dump_json(indent=2) + "\n",
    }


def table(results: Results) -> Table:
    """The comparison as a terminal shows it: a line a checkpoint, at most 100 columns for up to three judges."""
    shown = Table(box=box.SIMPLE_HEAD, caption=Text(_caption(results)), caption_justify="left", pad_edge=False)
    shown.add_column("checkpoint", overflow="fold")
    for judge in results.judges:
        shown.add_column(Text(f"win rate\n{judge.name}"), overflow="fold")
    for name in ("KL\nnats", "tokens", "ended\nitself", "distinct\n-2"):
        shown.add_column(name, justify="right")
    narrow = len(results.judges) > 2
    for checkpoint in results.checkpoints:
        found = {comparison.judge: comparison for comparison in results.between(checkpoint.name, results.base)}
        rates = [_terminal_rate(found.get(judge.name), narrow) for judge in results.judges]
        shown.add_row(Text(checkpoint.name), *rates, *map(Text, _terminal_facts(checkpoint)))
    return shown


# --- tables -------------------------------------------------------------------------------------------------------


def _sheets(data: ReportData) -> dict[str, Sheet]:
    results = data.results
    return {
        "rounds": _round_sheet(data.rounds),
        "comparisons": _comparison_sheet(results),
        "controlled": _controlled_sheet(results),
        "corrected": _corrected_sheet(results),
        "strengths": _strength_sheet(results),
        "habits": _habit_sheet(results),
        "checkpoints": _checkpoint_sheet(results),
        "judges": _judge_sheet(results.judges),
        "labels": _label_sheet(data.labels),
        "exam": exam_sheet(data.exam),
        "place": place_sheet(data.exam.position if data.exam else None),
        "gold": gold_sheet(data.exam.gold if data.exam else None),
        "people": _people_sheet(data.people),
        "against_people": _against_people_sheet(data.against_people),
        "doctor": doctor_sheet(data.findings),
        "steps": _step_sheet(data.steps),
        "spending": _spending_sheet(data.spending),
        "reward_models": _reward_sheet(data.reward_models),
        "curves": _curve_sheet(data.curves),
        "machine": Sheet("Versions and hardware", ("what", "value"), tuple((data.versions | data.hardware).items()), 2),
    }


def _comparison_sheet(results: Results) -> Sheet:
    columns = (
        "comparison", "judge", "verdict", "win rate", _interval_name(results), "bootstrap", "prompts", "verdicts",
        "ties", "abstained", "worst to best", "p (Holm)", "detectable", "length ratio",
    )  # fmt: skip
    rows = tuple(
        (
            f"{found.one} vs {found.other}",
            found.judge,
            verdict(found),
            percent(found.win_rate),
            interval(found.low, found.high),
            interval(found.bootstrap_low, found.bootstrap_high),
            str(found.n_clusters),
            str(found.n),
            str(found.ties),
            str(found.abstained),
            interval(found.bounds_low, found.bounds_high) if found.abstained else NOTHING,
            _p(found.p_holm),
            f"± {100 * found.smallest_detectable:.1f}",
            _number(found.tokens_ratio, 2),
        )
        for found in results.comparisons
    )
    return Sheet("Comparisons", columns, rows, names=3)


def _controlled_sheet(results: Results) -> Sheet:
    """The win rates between answers of one length, beside the raw ones."""
    raw = {(found.judge, found.one, found.other): found.win_rate for found in results.comparisons}
    unknown = {phi.judge: phi.not_identified for phi in results.length_coefficients if phi.not_identified}
    columns = ("comparison", "judge", "note", "win rate", "at equal length", _interval_name(results))
    rows = tuple(
        (
            f"{found.one} vs {found.other}",
            found.judge,
            f"not identified: {found.not_identified}" if found.not_identified else "",
            _share(raw.get((found.judge, found.one, found.other))),
            _share(found.win_rate),
            _bounds(found),
        )
        for found in results.length_controlled
        if found.judge not in unknown
    )
    rows += tuple(("all", judge, f"not identified: {why}", *(NOTHING,) * 3) for judge, why in unknown.items())
    return Sheet("At equal length", columns, rows, names=3)


def _corrected_sheet(results: Results) -> Sheet:
    """The win rates as people would have them."""
    raw = {(found.judge, found.one, found.other): found.win_rate for found in results.comparisons}
    columns = (
        "comparison", "judge", "method", "note", "the judge says", "people would", _interval_name(results),
        "people's labels", "reliance",
    )  # fmt: skip
    rows = tuple(
        (
            f"{found.one} vs {found.other}",
            found.judge,
            found.method,
            f"not identified: {found.not_identified}" if found.not_identified else "",
            _share(raw.get((found.judge, found.one, found.other))),
            _share(found.win_rate),
            _bounds(found),
            str(found.labels),
            _number(found.reliance, 2),
        )
        for found in results.corrected
    )
    return Sheet("Corrected by people", columns, rows, names=4)


def _bounds(found: LengthControlled | Corrected) -> str:
    return NOTHING if found.low is None or found.high is None else interval(found.low, found.high)


def _strength_sheet(results: Results) -> Sheet:
    """All checkpoints on one scale."""
    columns = ("checkpoint", "judge", "strength, log-odds", _interval_name(results), "Elo")
    rows = tuple(
        (one.name, found.judge, _number(one.value, 2), f"[{one.low:.2f}, {one.high:.2f}]", _number(one.elo, 0))
        for found in results.strengths
        for one in found.strengths
    )
    return Sheet("Strengths (Bradley-Terry)", columns, rows, names=2)


def _habit_sheet(results: Results) -> Sheet:
    """What a judge gives to the side of an answer and to its length, and how well one order fits its verdicts."""
    fits = {found.judge: found for found in results.strengths}
    columns = (
        "judge",
        "side a, log-odds",
        _interval_name(results),
        "ties, nu",
        "largest misfit",
        "length, phi",
        "error",
    )
    rows = tuple(
        (
            phi.judge,
            *(_habits(fits[phi.judge]) if phi.judge in fits else (NOTHING,) * 4),
            _number(phi.value, 2),
            _number(phi.standard_error, 2),
        )
        for phi in results.length_coefficients
    )
    return Sheet("What sways the judges", columns, rows)


def _habits(found: Strengths) -> tuple[str, ...]:
    side = found.side
    bounds = f"[{side.low:.2f}, {side.high:.2f}]"
    return (_number(side.value, 2), bounds, _number(found.tie, 2), percent(found.largest_misfit))


def _round_sheet(rounds: Sequence[Results]) -> Sheet:
    """What each round's policies gained on the base, and on the policy that the round began with."""
    columns = ("round", "comparison", "judge", "verdict", "win rate", "interval", "KL, nats", "prompts")
    known = {rounds[0].base} if rounds else set()
    rows = []
    for number, results in enumerate(rounds, start=1):
        kl = {each.name: each.kl for each in results.checkpoints}
        for new, start in itertools.product((n for n in kl if n not in known), [n for n in kl if n in known]):
            moved = _number(found.value, 1) if (found := kl[new]) else NOTHING
            rows += [
                (
                    str(number),
                    f"{new} vs {start}",
                    seen.judge,
                    verdict(seen),
                    percent(seen.win_rate),
                    interval(seen.low, seen.high),
                    moved,
                    str(seen.n_clusters),
                )
                for seen in results.between(new, start)
            ]
        known |= kl.keys()
    return Sheet("Rounds", columns, tuple(rows), names=4)


def _checkpoint_sheet(results: Results) -> Sheet:
    columns = (
        "checkpoint", "algorithm", "KL, nats", _interval_name(results), "tokens", "words", "ended itself",
        "distinct-2", "repetition", "answers",
    )  # fmt: skip
    rows = tuple(
        (
            found.name,
            found.algorithm,
            _number(found.kl.value, 1) if found.kl else NOTHING,
            _nats(found.kl),
            _number(found.tokens_mean, 0),
            _number(found.words_mean, 0),
            _share(found.finished_share),
            _number(found.distinct_2, 2),
            _number(found.repetition, 2),
            str(found.n_answers),
        )
        for found in results.checkpoints
    )
    return Sheet("Checkpoints", columns, rows, names=2)


def _judge_sheet(judges: Iterable[JudgeInfo]) -> Sheet:
    columns = ("judge", "labelled the training data", "asked", "ties", "abstained", "prefers longer", "prefers side a")
    rows = tuple(
        (
            judge.name,
            "yes" if judge.labelled else "no",
            str(judge.asked),
            str(judge.ties),
            _reasons(judge.abstained),
            _share(judge.prefers_longer),
            _share(judge.position_a),
        )
        for judge in judges
    )
    return Sheet("Judges", columns, rows, names=2)


def _label_sheet(labels: Labels | None) -> Sheet:
    if labels is None:
        return Sheet("Labels", (), ())
    names = ("judge", "prompts", "candidates", "pairs", "decided", "ties", "abstained")
    candidates = NOTHING if labels.candidates is None else labels.candidates
    counts = (labels.prompts, candidates, labels.pairs, labels.decided, labels.ties)
    told = _findings(labels)
    columns = (*names, *(name for name, _ in told))
    row = (labels.judge, *map(str, counts), _reasons(labels.abstained), *(value for _, value in told))
    return Sheet("Labels", columns, (row,))


def _findings(labels: Labels) -> list[tuple[str, str]]:
    """What the judge tells of itself, in words: `flip_rate` 0.125 is "flip rate" and "12.5 %"."""
    found = []
    for name, value in labels.findings.items():
        words, _, unit = name.replace("_", " ").rpartition(" ")
        found.append((f"{words} rate", percent(value)) if unit == "rate" else (words, f"{value:.2f} {unit}"))
    return found


def exam_sheet(exam: ExamReport | None) -> Sheet:
    """What the judge had to show, and what it showed."""
    outcomes = {True: "passed", False: "failed", None: "not asked"}
    rows = tuple(
        (
            check.name,
            outcomes[check.passed],
            wanted(check),
            shown(check.unit, check.found) if check.found else NOTHING,
            str(check.found.n) if check.found else NOTHING,
        )
        for check in (exam.checks if exam else ())
    )
    if exam and exam.prefers_longer:
        longer = exam.prefers_longer
        rows += (("the longer answer wins", NOTHING, NOTHING, shown("share", longer), str(longer.n)),)
    return Sheet("The judge's exam", ("what", "outcome", "floor", "found", "questions"), rows, names=2)


def place_sheet(position: Position | None) -> Sheet:
    """How much the place counts, of a judge that is asked in both orders."""
    columns = ("bias, nats", "95 % interval", "between answers, nats", "picks the first", "flips with the order")
    if position is None:
        return Sheet("Position bias", columns, ())
    row = (
        f"{position.bias.value:.2f}",
        f"[{position.bias.low:.2f}, {position.bias.high:.2f}]",
        f"{position.signal:.2f}",
        shown("share", position.first),
        shown("share", position.flips),
    )
    return Sheet("Position bias", columns, (row,), names=0)


def gold_sheet(gold: GoldReport | None) -> Sheet:
    """The judge against people."""
    if gold is None:
        return Sheet("The judge against people", (), ())
    rows = (
        ("right", _estimate(gold.accuracy)),
        *((f"right, {name}", _estimate(found)) for name, found in gold.by_subset.items()),
        ("right where the longer answer is better", _share(gold.accuracy_longer_better)),
        ("right where it is worse", _share(gold.accuracy_longer_worse)),
        ("the longer answer is better", _share(gold.longer_is_better)),
        ("prefers the longer answer", _estimate(gold.prefers_longer)),
        ("Cohen's kappa", _kappa(gold.kappa)),
        ("Brier score", _number(gold.brier, 3)),
        ("calibration error", _number(gold.ece, 3)),
        ("calibration error at the fitted temperature", _number(gold.ece_calibrated, 3)),
        ("surer of what is right (AUROC)", _number(gold.auroc, 3)),
        ("temperature", f"{gold.temperature:.3g}"),
        ("rows, ties among them", f"{gold.rows}, {gold.ties}"),
        ("abstained", _reasons(gold.abstained)),
    )
    return Sheet("The judge against people", ("what", "found"), rows)


def doctor_sheet(findings: Sequence[Finding]) -> Sheet:
    """What the doctor found, errors first."""
    order = {"error": 0, "warning": 1, "info": 2}
    columns = ("level", "check", "where", "found", "what to do")
    rows = tuple(
        (each.level, each.check, each.where, each.what, each.remedy or NOTHING)
        for each in sorted(findings, key=lambda each: order[each.level])
    )
    return Sheet("Doctor", columns, rows, names=5)


def _people_sheet(people: People | None) -> Sheet:
    """Who voted, and how far they agree."""
    columns = ("annotator", "votes", "ties", "agrees with others", "right by Dawid-Skene", "picks the left", "p")
    rows = tuple(
        (
            each.name,
            str(each.votes),
            str(each.ties),
            _share(each.agreement),
            _share(each.accuracy),
            _share(each.left),
            _p(each.left_p) if each.left_p is not None else NOTHING,
        )
        for each in (people.annotators if people else ())
    )
    return Sheet("Annotators", columns, rows)


def _against_people_sheet(found: AgreementReport | None) -> Sheet:
    """The comparing judges on the held-out votes."""
    columns = ("judge", "right where people decided", "pairs", "says the same of a, b and tie", "Cohen's kappa")
    couples = {couple.one: couple for couple in found.couples if couple.other == "people"} if found else {}
    rows = tuple(
        (
            name,
            _estimate(found.accuracy.get(name)),
            str(found.accuracy[name].n) if name in found.accuracy else NOTHING,
            _estimate(couple.agreement),
            _kappa(couple.kappa),
        )
        for name, couple in couples.items()
        if found
    )
    return Sheet("Comparing judges against people", columns, rows)


def _estimate(found: Estimate | None) -> str:
    return shown("share", found) if found else NOTHING


def _kappa(found: Estimate | None) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else NOTHING


def _step_sheet(steps: Iterable[StepTime]) -> Sheet:
    rows = tuple((step.name, step.state, duration(step.seconds), memory(step.peak_memory_bytes)) for step in steps)
    return Sheet("Time and memory", ("step", "state", "time", "peak memory"), rows, names=2)


def _spending_sheet(spending: Iterable[Spent]) -> Sheet:
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


def _reward_sheet(found: dict[str, HeldOut]) -> Sheet:
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
            _number(one.pearson, 2),
            _number(one.spearman, 2),
            _number(one.ece, 3),
            _number(one.brier, 3),
            f"{one.temperature:.3g}",
            f"[{one.temperature_low:.3g}, {one.temperature_high:.3g}]",
            _number(one.ece_calibrated, 3),
        )
        for name, one in found.items()
    )
    return Sheet("Reward models on held-out pairs", columns, rows, names=2)


def _curve_sheet(curves: dict[str, list[dict[str, float | None]]]) -> Sheet:
    rows = []
    for name, log in curves.items():
        for metric in _metrics(log):
            values = [value for _, value in _finite(log, metric)]
            if values:
                shown = (_short(value) for value in (values[0], values[-1], min(values), max(values)))
                rows.append((name, metric, *shown))
    return Sheet("Training", ("step", "metric", "first", "last", "lowest", "highest"), tuple(rows), names=2)


def verdict(found: Comparison) -> str:
    """What one comparison supports, of `one`: better, worse, or not decisive."""
    if not found.decisive:
        return "not decisive"
    return "better" if found.win_rate > 0.5 else "worse"


def sheet_table(sheet: Sheet) -> Table:
    """A sheet as a terminal shows it."""
    shown = Table(box=box.SIMPLE_HEAD, title=Text(sheet.title), title_justify="left", pad_edge=False)
    for place, column in enumerate(sheet.columns):
        shown.add_column(Text(column), justify="left" if place < sheet.names else "right", overflow="fold")
    for row in sheet.rows:
        shown.add_row(*map(Text, row))
    return shown


def duration(seconds: float | None) -> str:
    """75.2 -> `1 min 15 s`."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(size: int | None) -> str:
    """1_620_000_000 bytes -> `1.62 GB` (decimal, as memory is sold)."""
    if size is None:
        return NOTHING
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _interval_name(results: Results) -> str:
    return f"{100 * results.confidence:g} % interval"


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else percent(value)


def _nats(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else f"[{estimate.low:.1f}, {estimate.high:.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _short(value: float) -> str:
    text = f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"
    return text.replace("-", "−", 1) if value < 0 else text


def _reasons(abstained: dict[str, int]) -> str:
    counted = [f"{count} {reason}" for reason, count in abstained.items() if count]
    return ", ".join(counted) or "0"


# --- plots --------------------------------------------------------------------------------------------------------


def axis(values: Iterable[float], label: Callable[[float], str] = "{:g}".format, wanted: int = 4) -> Axis:
    """A scale around the values whose ticks are 1, 2 or 5 times a power of ten apart."""
    values = list(values) or [0.0]
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(place * step, 12) for place in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, label)


def rate_axis(comparisons: Iterable[Comparison]) -> Axis:
    """A scale of win rates with 50 % in its middle, as wide as the widest interval needs."""
    reach = max((max(abs(found.low - 0.5), abs(found.high - 0.5)) for found in comparisons), default=0.0)
    half = min(0.5, max(0.1, math.ceil(round(reach * 10, 6)) / 10))
    step = 0.05 if half <= 0.1 else 0.1 if half <= 0.3 else 0.25 if half == 0.5 else half / 2
    count = round(half / step)
    ticks = tuple(round(0.5 + place * step, 4) for place in range(-count, count + 1))
    return Axis(0.5 - half, 0.5 + half, ticks, lambda share: f"{100 * share:g}")


def _forest(results: Results) -> dict[str, Any]:
    """Comparisons with the base first, each a group of one row a judge."""
    scale = rate_axis(results.comparisons)
    pairs = dict.fromkeys((found.one, found.other) for found in results.comparisons)
    groups = [
        {"one": one, "other": other, "rows": [_forest_row(found, results, scale) for found in results.comparisons
                                              if (found.one, found.other) == (one, other)]}
        for one, other in sorted(pairs, key=lambda pair: results.base not in pair)
    ]  # fmt: skip
    return {"axis": scale, "groups": groups}


def _forest_row(found: Comparison, results: Results, scale: Axis) -> dict[str, Any]:
    return {
        "judge": found.judge,
        "labelled": found.judge == results.labelling_judge,
        "low": scale.at(found.low),
        "value": scale.at(found.win_rate),
        "high": scale.at(found.high),
        "rate": percent(found.win_rate),
        "interval": interval(found.low, found.high),
        "verdict": verdict(found),
        "tone": {"better": "gain", "worse": "loss"}.get(verdict(found), "none"),
    }


def _scatters(results: Results) -> list[dict[str, Any]]:
    """KL against win rate, one drawing a judge, all on the same two scales."""
    known = {found.name: found.kl for found in results.checkpoints if found.kl is not None}
    against_base = [found for name in known for found in results.between(name, results.base)]
    if not against_base:
        return []
    across = axis([0.0, *(known[found.one].high for found in against_base)])
    upward = rate_axis(against_base)
    drawn = []
    for judge in results.judges:
        points = [_point(found, known[found.one], across, upward) for found in against_base
                  if found.judge == judge.name]  # fmt: skip
        if points:
            base = {"name": results.base, "x": across.at(0), "y": upward.up(0.5), "tone": "none"}
            drawn.append({"judge": judge.name, "labelled": judge.labelled, "x": across, "y": upward,
                          "points": _spread([base, *points])})  # fmt: skip
    return drawn


def _point(found: Comparison, kl: Estimate, across: Axis, upward: Axis) -> dict[str, Any]:
    return {
        "name": found.one,
        "x": across.at(kl.value),
        "y": upward.up(found.win_rate),
        "left": across.at(kl.low),
        "right": across.at(kl.high),
        "top": upward.up(found.high),
        "bottom": upward.up(found.low),
        "tone": {"better": "gain", "worse": "loss"}.get(verdict(found), "none"),
    }


def _spread(points: list[dict[str, Any]], gap: float = 8.0) -> list[dict[str, Any]]:
    """Gives each point's name a height of its own: names of neighbouring points are kept `gap` percent apart."""
    placed: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["y"], point["x"])):
        near = [other["text_y"] for other in placed if abs(other["x"] - point["x"]) < 35]
        height = max([point["y"], *(other + gap for other in near)])
        placed.append({**point, "text_y": round(height, 2), "flip": point["x"] > 70})
    return placed


def _charts(log: list[dict[str, float | None]]) -> list[dict[str, Any]]:
    """The training curves of one step; `x/chosen` and `x/rejected` share a drawing, and so do `x` and `eval_x`."""
    groups: dict[str, list[str]] = {}
    for metric in _metrics(log):
        name = metric.removeprefix(EVALUATED)
        prefix, _, last = name.rpartition("/")
        groups.setdefault(prefix if prefix and last in TONES else name, []).append(metric)
    order = {name: place for place, name in enumerate(CURVES)}
    named = sorted(groups.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
    found = [_chart(name, {metric: _finite(log, metric) for metric in metrics}) for name, metrics in named]
    return [chart for chart in [_reward_by_kl(log), *found] if chart]


def _reward_by_kl(log: list[dict[str, float | None]]) -> dict[str, Any] | None:
    """What the reward cost: each update is a point, and the line joins them in their order."""
    reward = next((name for name in REWARDS if any(name in entry for entry in log)), None)
    if reward is None:
        return None
    by_step = dict(_finite(log, "kl"))
    points = [(by_step[step], value) for step, value in _finite(log, reward) if step in by_step]
    return _chart(f"{reward} by KL", {reward: points}, across="KL to the reference")


def _chart(
    name: str, series: dict[str, list[tuple[float, float]]], across: str = "training step"
) -> dict[str, Any] | None:
    series = {metric: _thinned(points) for metric, points in series.items()}
    points = [point for found in series.values() for point in found]
    if not points:
        return None
    scale = axis(x for x, _ in points)
    least, most = min(x for x, _ in points), max(x for x, _ in points)
    scale = scale._replace(low=least, high=most if most > least else scale.ticks[0] + 1)
    scale = scale._replace(ticks=tuple(tick for tick in scale.ticks if scale.low <= tick <= scale.high))
    upward = axis((y for _, y in points), label=_short, wanted=3)
    return {
        "name": name,
        "across": across,
        "x": scale,
        "y": upward,
        "series": [
            {
                **_line(metric),
                "points": " ".join(f"{scale.at(x):g},{upward.up(y):g}" for x, y in found),
                "x": scale.at(found[-1][0]),
                "y": upward.up(found[-1][1]),
                "last": _short(found[-1][1]),
            }
            for metric, found in series.items()
            if found
        ],
    }


def _line(metric: str) -> dict[str, str]:
    """What a metric's line is called in its drawing, and its classes of colour and stroke."""
    last = metric.rpartition("/")[2]
    names, tones = [last] if last in TONES else [], [TONES.get(last, "accent")]
    if metric.startswith(EVALUATED):
        names, tones = ["held out", *names], [*tones, "held"]
    return {"name": " ".join(names), "tone": " ".join(tones)}


def _metrics(log: list[dict[str, float | None]]) -> list[str]:
    return sorted({metric for entry in log for metric in entry} - NOT_CURVES)


def _finite(log: list[dict[str, float | None]], metric: str) -> list[tuple[float, float]]:
    """(step, value) where both are numbers: a NaN of a failed run leaves a gap in the data, not in the page."""
    found = []
    for place, entry in enumerate(log):
        step, value = entry.get("step", place), entry.get(metric)
        if step is not None and value is not None and math.isfinite(step) and math.isfinite(value):
            found.append((float(step), float(value)))
    return found


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `MAX_POINTS`, with the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= MAX_POINTS:
        return points
    width = math.ceil(len(points) / (MAX_POINTS // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return [*kept, points[-1]]


def _histogram(counts: Sequence[int]) -> dict[str, Any] | None:
    """Bars of the confidence histogram."""
    if not any(counts):
        return None
    upward, width = axis([0, *counts], wanted=3), 100 / len(counts)
    edges = [0.5 + 0.5 * place / len(counts) for place in range(len(counts) + 1)]
    bars = [
        {
            "x": round(place * width + 0.6, 2),
            "width": round(width - 1.2, 2),
            "y": upward.up(count),
            "height": upward.at(count),
            "title": f"{edges[place]:.2f} to {edges[place + 1]:.2f}: {count} pairs",
        }
        for place, count in enumerate(counts)
    ]
    return {"bars": bars, "x": Axis(0.5, 1.0, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), "{:.1f}".format), "y": upward}


def _outcomes(labels: Labels) -> list[dict[str, Any]]:
    """Decided, tied and abstained as parts of one bar."""
    parts = (("decided", labels.decided, "accent"), ("ties", labels.ties, "none"),
             ("abstained", sum(labels.abstained.values()), "loss"))  # fmt: skip
    total, start, drawn = max(1, sum(count for _, count, _ in parts)), 0.0, []
    for name, count, tone in parts:
        width = round(100 * count / total, 2)
        shown = {"name": name, "count": count, "share": percent(count / total), "tone": tone}
        drawn.append({**shown, "x": start, "width": width})
        start = round(start + width, 2)
    return drawn


def _bars(steps: Sequence[StepTime]) -> list[tuple[float, float]]:
    """(time, memory) of each step as a percentage of the largest."""
    longest = max((step.seconds or 0 for step in steps), default=0) or 1
    largest = max((step.peak_memory_bytes or 0 for step in steps), default=0) or 1
    return [
        (round(100 * (step.seconds or 0) / longest, 2), round(100 * (step.peak_memory_bytes or 0) / largest, 2))
        for step in steps
    ]


# --- HTML ---------------------------------------------------------------------------------------------------------


def _html(data: ReportData, sheets: dict[str, Sheet]) -> str:
    environment = _environment(autoescape=True)
    style, script = (files("pipeline").joinpath("templates", name).read_text("utf-8") for name in ASSETS)
    return environment.get_template("report.html.j2").render(
        data=data,
        sheets=sheets,
        claims=_claims(data.results.headline),
        forest=_forest(data.results),
        scatters=_scatters(data.results),
        charts={name: found for name, log in data.curves.items() if (found := _charts(log))},
        histogram=_histogram(data.labels.confidence) if data.labels else None,
        outcomes=_outcomes(data.labels) if data.labels else [],
        findings=_findings(data.labels) if data.labels else [],
        bars=_bars(data.steps),
        total_time=duration(sum(step.seconds or 0 for step in data.steps)),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        samples=Markup(embedded(_browser_data(data))),
        interval_name=_interval_name(data.results),
    )


def _claims(headline: str) -> list[tuple[str, str]]:
    """The headline's sentences as (claim, numbers), so that the page can print the first claim large."""
    sentences = re.split(r"(?<=\.) ", headline)
    return [(claim, rest) for claim, _, rest in (sentence.partition(": ") for sentence in sentences)]


ASSETS = ("report.css", "report.js")


def embedded(value: Any) -> str:
    """JSON that may stand inside `<script>`: with no `<` in it no text can close the element or open a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which our one style and one script run, and nothing is ever fetched."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _browser_data(data: ReportData) -> dict[str, Any]:
    """What the browser of samples reads."""
    names = [checkpoint.name for checkpoint in data.results.checkpoints]
    keys = dict.fromkeys(f"{found.one} vs {found.other}" for found in data.results.comparisons)
    return {
        "checkpoints": list(dict.fromkeys([*names, *(name for sample in data.samples for name in sample.answers)])),
        "judges": [judge.name for judge in data.results.judges],
        "comparisons": [dict(zip(("key", "one", "other"), (key, *key.split(" vs ", 1)), strict=True)) for key in keys],
        "samples": [sample.model_dump(mode="json") for sample in data.samples],
    }


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters["tight"] = _tight
    return environment


def _tight(text: str) -> str:
    """Keeps a number and its percent sign on one line."""
    return text.replace(" %", "\u202f%")


# --- Markdown -----------------------------------------------------------------------------------------------------


def _markdown(data: ReportData, sheets: dict[str, Sheet]) -> str:
    # Every value that the template prints passes `markdown_text`; only what is marked safe is printed as it is.
    environment = _environment(autoescape=False, finalize=_markdown_value)
    return environment.get_template("report.md.j2").render(
        data=data,
        sheets=[sheet for sheet in sheets.values() if sheet.rows],
        confidence=data.labels.confidence if data.labels else (),
        recipe=Markup(fenced(data.recipe_yaml, "yaml")),
    )


def _markdown_value(value: Any) -> Any:
    return markdown_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: on one line, no markup, no link, no end of a table cell."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"([\\`|*~$])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)
    text = re.sub(r"^([#+>-]|\d+[.)])(?=\s)", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def fenced(text: str, language: str) -> str:
    """A code block that its text cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# --- terminal -----------------------------------------------------------------------------------------------------


def _terminal_rate(found: Comparison | None, narrow: bool) -> Text:
    if found is None:
        return Text(NOTHING)
    bounds, star = interval(found.low, found.high), " *" if found.decisive else ""
    style = {"better": "bold green", "worse": "bold red"}.get(verdict(found), "")
    return Text(f"{percent(found.win_rate)}{star}{chr(10) if narrow else ' '}{bounds}", style=style)


def _terminal_facts(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (
        _number(checkpoint.kl.value, 1) if checkpoint.kl else NOTHING,
        _number(checkpoint.tokens_mean, 0),
        _share(checkpoint.finished_share),
        _number(checkpoint.distinct_2, 2),
    )


def _caption(results: Results) -> str:
    return (
        f"Win rate against {results.base or 'the base'} on {results.prompts} held-out prompts, "
        f"{_interval_name(results)}. * decisive: not 50 %, all comparisons of the judge together."
    )
