"""Training curves: what each step logged by itself, and what several steps logged on the same axes.

Methods call one thing by several names and count it in several units; `ALIASES` says which metrics are one, and what
is the same only in name (a loss, KTO's estimate of its KL) is compared with nobody. What is left out: the SVG itself
(`pipeline/templates/charts.html.j2`), and reward against KL (`frontier`).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.report.axes import axis
from pipeline.report.sheet import short

MAX_POINTS = 400
"""Points of one training curve; a longer curve keeps the extremes of each stretch."""
ALL_POINTS = 60_000
"""Points of all curves of a page, by which each has fewer where there are very many."""
FEWEST_POINTS = 40

CURVES = (
    "loss", "rewards/accuracies", "rewards/margins", "score", "reward", "kl", "entropy", "length", "ended",
    "rewards", "logps", "grad_norm",
)  # fmt: skip
"""Order of the training curves that everybody looks for. Others follow by name."""
EVALUATED = "eval_"
"""What the name of a metric begins with that was measured on held-out examples while training went on."""
TONES = {"chosen": "gain", "rejected": "loss"}
"""Colours of the two lines that share a drawing."""
NOT_CURVES = frozenset({"step", "epoch", "episodes", "total_flos", "num_tokens"})
"""Bookkeeping that counts up whatever happens."""
HUES, DASHES = 8, 5
"""Colours and strokes of lines that stand for train steps: the first five differ in both, and forty in one of them."""

Log = list[dict[str, float | None]]
Points = list[tuple[float, float]]


class Shared(NamedTuple):
    """One quantity, by the names that the trainers have for it."""

    name: str
    value: Callable[[Mapping[str, float | None]], float | None]


def _first(*names: str) -> Callable[[Mapping[str, float | None]], float | None]:
    return lambda entry: next((entry[name] for name in names if entry.get(name) is not None), None)


def kl_of_answer(entry: Mapping[str, float | None]) -> float | None:
    """KL to the reference, in nats an answer, of one log entry; None where it has none.

    PPO logs that. RLOO and GRPO log it a token, and the mean length of an answer: their product is the KL of a mean
    answer. KTO's `kl` is of answers to other prompts, and its log has neither.
    """
    kl, length = entry.get("kl"), entry.get("completions/mean_length")
    if kl is None or ("kl_token" not in entry and length is None):
        return None
    return kl if length is None else kl * length


def reward_of(entry: Mapping[str, float | None]) -> float | None:
    """Mean of what the answers were rewarded with, before any normalisation and any price on KL."""
    return _first("score", "reward")(entry)


def _ended(entry: Mapping[str, float | None]) -> float | None:
    cut = entry.get("completions/clipped_ratio")
    return entry.get("ended") if cut is None else 1 - cut


ALIASES = (
    Shared("accuracy", _first("rewards/accuracies", "accuracy")),
    Shared("margin", _first("rewards/margins", "margin")),
    Shared("reward", reward_of),
    Shared("KL to the reference, nats an answer", kl_of_answer),
    Shared("entropy, nats a token", _first("entropy")),
    Shared("length, tokens", _first("length", "completions/mean_length")),
    Shared("answers that ended by themselves", _ended),
    Shared("loss", _first("loss")),
    Shared("loss on held-out examples", _first("eval_loss")),
    Shared("norm of the gradient", _first("grad_norm")),
)
"""What is drawn on shared axes wherever two train steps have it."""


def shared_of(curves: Mapping[str, Log]) -> dict[str, Any] | None:
    """A drawing for each quantity that two train steps or more logged, and the legend that all of them share."""
    legend = {name: look(place) for place, name in enumerate(name for name, log in curves.items() if log)}
    lines = {each.name: {step: found for step in legend if (found := _series(curves[step], each.value))}
             for each in ALIASES}  # fmt: skip
    most = points_each(sum(map(len, lines.values())))
    drawn = [
        _chart(name, [(step, legend[step], points) for step, points in found.items()], most)
        for name, found in lines.items()
        if len(found) > 1
    ]
    met = {line["name"] for chart in drawn for line in chart["series"]}
    if not drawn:
        return None
    return {"charts": drawn, "legend": [{"name": name, "tone": tone} for name, tone in legend.items() if name in met]}


def own_of(curves: Mapping[str, Log]) -> dict[str, list[dict[str, Any]]]:
    """The drawings of each train step that has any."""
    most = points_each(sum(len(metrics_of(log)) for log in curves.values()))
    return {name: found for name, log in curves.items() if (found := charts_of(log, most))}


def charts_of(log: Log, most: int = MAX_POINTS) -> list[dict[str, Any]]:
    """The training curves of one step; `x/chosen` and `x/rejected` share a drawing, and so do `x` and `eval_x`."""
    groups: dict[str, list[str]] = {}
    for metric in metrics_of(log):
        name = metric.removeprefix(EVALUATED)
        prefix, _, last = name.rpartition("/")
        groups.setdefault(prefix if prefix and last in TONES else name, []).append(metric)
    order = {name: place for place, name in enumerate(CURVES)}
    named = sorted(groups.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
    found = [(name, [(*_line(metric), finite(log, metric)) for metric in metrics]) for name, metrics in named]
    return [_chart(name, lines, most) for name, lines in found if any(points for *_, points in lines)]


def _chart(name: str, lines: Iterable[tuple[str, str, Points]], most: int) -> dict[str, Any]:
    """A drawing of lines, each with its name and its classes; one at least has a point."""
    thin = [(line, tone, thinned(points, most)) for line, tone, points in lines if points]
    points = [point for *_, found in thin for point in found]
    scale = axis(x for x, _ in points)
    least, highest = min(x for x, _ in points), max(x for x, _ in points)
    scale = scale._replace(low=least, high=highest if highest > least else scale.ticks[0] + 1)
    scale = scale._replace(ticks=tuple(tick for tick in scale.ticks if scale.low <= tick <= scale.high))
    upward = axis((y for _, y in points), label=short, wanted=3)
    series = [
        {
            "name": line,
            "tone": tone,
            "points": " ".join(f"{scale.at(x):g},{upward.up(y):g}" for x, y in found),
            "x": scale.at(found[-1][0]),
            "y": upward.up(found[-1][1]),
            "last": short(found[-1][1]),
        }
        for line, tone, found in thin
    ]
    told = "; ".join(_told(line, found) for line, _, found in thin)
    return {"name": name, "x": scale, "y": upward, "series": series, "told": f"{name} by training step: {told}"}


def _told(name: str, points: Points) -> str:
    """A line in words, for who cannot see it."""
    values = [y for _, y in points]
    said = f"from {short(values[0])} to {short(values[-1])}, lowest {short(min(values))}, highest {short(max(values))}"
    return f"{name} {said}" if name else said


def _line(metric: str) -> tuple[str, str]:
    """What a metric's line is called in its drawing, and its classes of colour and stroke."""
    last = metric.rpartition("/")[2]
    names, tones = [last] if last in TONES else [], [TONES.get(last, "accent")]
    if metric.startswith(EVALUATED):
        names, tones = ["held out", *names], [*tones, "held"]
    return " ".join(names), " ".join(tones)


def look(place: int) -> str:
    """Classes of colour and stroke of the line of a train step."""
    return f"hue{place % HUES} dash{place % DASHES}"


def points_each(lines: int) -> int:
    """Points that each of so many lines may have."""
    return min(MAX_POINTS, max(FEWEST_POINTS, ALL_POINTS // max(1, lines)))


def metrics_of(log: Log) -> list[str]:
    return sorted({metric for entry in log for metric in entry} - NOT_CURVES)


def finite(log: Log, metric: str) -> Points:
    """(step, value) where both are numbers: a NaN of a failed run leaves a gap in the data, not in the page."""
    return _series(log, lambda entry: entry.get(metric))


def _series(log: Log, value: Callable[[Mapping[str, float | None]], float | None]) -> Points:
    found = []
    for place, entry in enumerate(log):
        step, y = entry.get("step", place), value(entry)
        if step is not None and y is not None and math.isfinite(step) and math.isfinite(y):
            found.append((float(step), float(y)))
    return found


def thinned(points: Points, most: int = MAX_POINTS) -> Points:
    """At most about so many, with the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= most:
        return points
    width = math.ceil(len(points) / (most // 2))
    kept: Points = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return [*kept, points[-1]]
