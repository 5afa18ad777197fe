"""Plots of what was found, as numbers that a template draws: every place is a percentage, every colour a word.

What is left out: training curves (`curves`), KL (`frontier`), matrix and ratings (`standings`), and the SVG itself
(`pipeline/templates/charts.html.j2`).
"""

from collections.abc import Sequence
from typing import Any

from pipeline.ratings import Comparison, Results, interval, percent
from pipeline.report.axes import Axis, axis, rate_axis
from pipeline.report.data import Labels, StepTime
from pipeline.report.sheet import verdict
from pipeline.report.standings import standing


def forest(results: Results) -> dict[str, Any]:
    """Each pair a group of one row a judge; those with the base apart from the rest, and seen from the other one."""
    scale = rate_axis(results.comparisons)
    order = {name: place for place, name in enumerate(standing(results))}
    pairs = dict.fromkeys((found.one, found.other) for found in results.comparisons)
    turned = [(other, one) if one == results.base else (one, other) for one, other in pairs]
    groups = [
        {
            "one": one,
            "other": other,
            "rows": [_forest_row(found, results, scale) for found in results.between(one, other)],
        }
        for one, other in sorted(turned, key=lambda pair: [order.get(name, len(order)) for name in pair])
    ]
    based = [group for group in groups if group["other"] == results.base]
    return {"axis": scale, "based": based, "rest": [group for group in groups if group["other"] != results.base]}


def _forest_row(found: Comparison, results: Results, scale: Axis) -> dict[str, Any]:
    return {
        "judge": found.judge,
        "labelled": results.tag(found.judge),
        "low": scale.at(found.low),
        "value": scale.at(found.win_rate),
        "high": scale.at(found.high),
        "rate": percent(found.win_rate),
        "interval": interval(found.low, found.high),
        "verdict": verdict(found),
        "tone": {"better": "gain", "worse": "loss"}.get(verdict(found), "none"),
    }


def histogram_of(counts: Sequence[int]) -> dict[str, Any] | None:
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


def outcomes_of(labels: Labels) -> list[dict[str, Any]]:
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


def bars_of(steps: Sequence[StepTime]) -> list[tuple[float, float]]:
    """(time, memory) of each step as a percentage of the largest."""
    longest = max((step.seconds or 0 for step in steps), default=0) or 1
    largest = max((step.peak_memory_bytes or 0 for step in steps), default=0) or 1
    return [
        (round(100 * (step.seconds or 0) / longest, 2), round(100 * (step.peak_memory_bytes or 0) / largest, 2))
        for step in steps
    ]
