"""Plots of what was found, as numbers that a template draws: every place is a percentage, every colour a word.

What is left out: training curves (`curves`) and the SVG itself (`pipeline/templates/charts.html.j2`).
"""

from collections.abc import Sequence
from typing import Any

from pipeline.ratings import Comparison, Results, interval, percent
from pipeline.report.axes import Axis, axis, rate_axis
from pipeline.report.data import Labels, StepTime
from pipeline.report.sheet import verdict
from pipeline.statistics.win_rate import Estimate


def forest(results: Results) -> dict[str, Any]:
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
        "labelled": results.labelled(found.judge),
        "low": scale.at(found.low),
        "value": scale.at(found.win_rate),
        "high": scale.at(found.high),
        "rate": percent(found.win_rate),
        "interval": interval(found.low, found.high),
        "verdict": verdict(found),
        "tone": {"better": "gain", "worse": "loss"}.get(verdict(found), "none"),
    }


def scatters(results: Results) -> list[dict[str, Any]]:
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
