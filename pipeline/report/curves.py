"""Training curves: which metrics share a drawing, and the points of their lines.

What is left out: the SVG itself (`pipeline/templates/charts.html.j2`).
"""

import math
from typing import Any

from pipeline.report.axes import axis
from pipeline.report.sheet import short

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


def charts_of(log: list[dict[str, float | None]]) -> list[dict[str, Any]]:
    """The training curves of one step; `x/chosen` and `x/rejected` share a drawing, and so do `x` and `eval_x`."""
    groups: dict[str, list[str]] = {}
    for metric in metrics_of(log):
        name = metric.removeprefix(EVALUATED)
        prefix, _, last = name.rpartition("/")
        groups.setdefault(prefix if prefix and last in TONES else name, []).append(metric)
    order = {name: place for place, name in enumerate(CURVES)}
    named = sorted(groups.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
    found = [_chart(name, {metric: finite(log, metric) for metric in metrics}) for name, metrics in named]
    return [chart for chart in [reward_by_kl(log), *found] if chart]


def reward_by_kl(log: list[dict[str, float | None]]) -> dict[str, Any] | None:
    """What the reward cost: each update is a point, and the line joins them in their order."""
    reward = next((name for name in REWARDS if any(name in entry for entry in log)), None)
    if reward is None:
        return None
    by_step = dict(finite(log, "kl"))
    points = [(by_step[step], value) for step, value in finite(log, reward) if step in by_step]
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
    upward = axis((y for _, y in points), label=short, wanted=3)
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
                "last": short(found[-1][1]),
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


def metrics_of(log: list[dict[str, float | None]]) -> list[str]:
    return sorted({metric for entry in log for metric in entry} - NOT_CURVES)


def finite(log: list[dict[str, float | None]], metric: str) -> list[tuple[float, float]]:
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
