"""What a gain cost in KL: win rates of the final checkpoints, and the way of each update through reward and KL.

What is left out: training curves over time (`curves`), and the SVG itself (`pipeline/templates/charts.html.j2`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.ratings import Comparison, Results, interval, percent
from pipeline.report.axes import Axis, axis, rate_axis
from pipeline.report.curves import Log, kl_of_answer, look, reward_of
from pipeline.report.sheet import short, verdict
from pipeline.report.standings import numbers
from pipeline.statistics.win_rate import Estimate

MAX_UPDATES = 120
"""Points of one path; of a longer one every so-and-so-many-th update is drawn, and the last."""
LABEL = 7.0
"""Height of a name in a drawing, in percent of it."""
LONGEST = 20
"""Letters of a name in a drawing; tables have the whole."""
LETTER = 2.8
"""Width of a letter, likewise."""


def scatters(results: Results) -> list[dict[str, Any]]:
    """KL against win rate, one drawing a judge, all on the same two scales."""
    known = {found.name: found.kl for found in results.checkpoints if found.kl is not None}
    against_base = [found for name in known for found in results.between(name, results.base)]
    if not against_base:
        return []
    across = axis([0.0, *(known[found.one].high for found in against_base)])
    upward = rate_axis(against_base)
    drawn, called = [], numbers(results)
    for judge in results.judges:
        own = [found for found in against_base if found.judge == judge.name]
        if own:
            base = {"name": results.base, "x": across.at(0), "y": upward.up(0.5), "tone": "none"}
            points = [base, *(_point(found, known[found.one], across, upward) for found in own)]
            points = [{**each, "name": _shortened(called.get(each["name"], each["name"]))} for each in points]
            told = "; ".join(_told(found, known[found.one]) for found in own)
            drawn.append({"title": f"Win rate by {judge.name}", "upward": "win rate in percent", "half": upward.up(0.5),
                          "labelled": judge.tag, "x": across, "y": upward, "points": labelled(points),
                          "told": told})  # fmt: skip
    return drawn


def _point(found: Comparison, kl: Estimate, across: Axis, upward: Axis) -> dict[str, Any]:
    tone = {"better": "gain", "worse": "loss"}.get(verdict(found), "none")
    heights = [upward.up(value) for value in (found.win_rate, found.low, found.high)]
    return {"name": found.one, "tone": tone, **_cross(kl, heights, across)}


def _cross(kl: Estimate, heights: Sequence[float], across: Axis) -> dict[str, float]:
    """A point with its intervals both ways; heights of its value and of the ends of its interval."""
    y, bottom, top = heights
    x, left, right = (across.at(value) for value in (kl.value, kl.low, kl.high))
    return {"x": x, "left": left, "right": right, "y": y, "top": top, "bottom": bottom}


def _told(found: Comparison, kl: Estimate) -> str:
    return f"{found.one} {percent(found.win_rate)} {interval(found.low, found.high)} at {kl.value:.1f} nats"


def rewards(results: Results) -> list[dict[str, Any]]:
    """KL against the score of each reward model, which says what was learned and not what is better."""
    called = numbers(results)
    scored = [(each.model, found.name, found.kl, each.score)
              for found in results.checkpoints for each in found.rewards if found.kl is not None]  # fmt: skip
    drawn = []
    for model in dict.fromkeys(model for model, *_ in scored):
        own = [(name, kl, score) for of, name, kl, score in scored if of == model]
        across = axis([0.0, *(kl.high for _, kl, _ in own)])
        upward = axis([end for *_, score in own for end in (score.low, score.high)], label=short)
        heights = [[upward.up(value) for value in (score.value, score.low, score.high)] for *_, score in own]
        points = [{"name": _shortened(called.get(name, name)), "tone": "accent", **_cross(kl, height, across)}
                  for (name, kl, _), height in zip(own, heights, strict=True)]  # fmt: skip
        told = "; ".join(f"{name} {short(score.value)} at {kl.value:.1f} nats" for name, kl, score in own)
        drawn.append({"title": f"Score by {model}", "upward": "standard deviations of the base’s answers",
                      "half": None, "labelled": None, "x": across, "y": upward, "points": labelled(points),
                      "told": told})  # fmt: skip
    return drawn


def paths(curves: Mapping[str, Log], called: Mapping[str, str]) -> dict[str, Any] | None:
    """Reward against KL, an update a point, of every train step that logged both; joined in their order.

    Args:
        called: what a step is called in the drawing, where that is not its name (`standings.numbers`).
    """
    found = {name: _way(log) for name, log in curves.items()}
    found = {name: way for name, way in found.items() if way}
    if not found:
        return None
    points = [point for way in found.values() for point in way]
    across = axis([0.0, *(kl for kl, _ in points)])
    upward = axis([reward for _, reward in points], label=short)
    ends = [
        {
            "step": name,
            "name": _shortened(called.get(name, name)),
            "x": across.at(way[-1][0]),
            "y": upward.up(way[-1][1]),
        }
        for name, way in found.items()
    ]
    place_of = {point["step"]: point for point in labelled(ends)}
    tone_of = {name: look(place) for place, name in enumerate(name for name, log in curves.items() if log)}
    drawn = [
        {
            **place_of[name],
            "tone": tone_of[name],
            "points": " ".join(f"{across.at(kl):g},{upward.up(reward):g}" for kl, reward in way),
            "dots": [(across.at(kl), upward.up(reward)) for kl, reward in way[:-1]],
        }
        for name, way in found.items()
    ]
    told = "; ".join(
        f"{name} from {short(way[0][1])} at {way[0][0]:.1f} nats to {short(way[-1][1])} at {way[-1][0]:.1f} nats"
        for name, way in found.items()
    )
    return {"x": across, "y": upward, "paths": drawn, "told": told}


def _way(log: Log) -> list[tuple[float, float]]:
    """(KL, reward) of each update that logged both as numbers."""
    both = [(kl_of_answer(entry), reward_of(entry)) for entry in log]
    way = [(kl, reward) for kl, reward in both if kl is not None and reward is not None]
    way = [point for point in way if all(map(math.isfinite, point))]
    every = math.ceil(len(way) / MAX_UPDATES)
    return way if every <= 1 else [*way[:-1:every], way[-1]]


def labelled(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives each point's name a height of its own: names that would cover each other are kept apart, and all inside.

    `led_to` is where a line from the point to its name ends; at the point itself where the name is beside it.
    """
    placed: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["y"], point["x"])):
        point = {**point, "flip": point["x"] > 70}
        above = [other["text_y"] + LABEL for other in placed if _meet(point, other)]
        placed.append({**point, "text_y": max([point["y"], *above])})
    # Where they ran out below, the lowest move up, and push those above them.
    for place in reversed(range(len(placed))):
        below = [other["text_y"] - LABEL for other in placed[place + 1 :] if _meet(placed[place], other)]
        placed[place]["text_y"] = round(min([placed[place]["text_y"], 100.0, *below]), 2)
    far = [abs(point["text_y"] - point["y"]) > LABEL for point in placed]
    return [{**point, "led_to": point["text_y" if led else "y"]} for point, led in zip(placed, far, strict=True)]


def _shortened(name: str) -> str:
    """The end of a long name: checkpoints of one sweep begin alike."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _meet(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two names would cover each other, were they at one height."""
    (start, end), (first, last) = _extent(one), _extent(other)
    return start < last and first < end


def _extent(point: dict[str, Any]) -> tuple[float, float]:
    width = LETTER * (len(point["name"]) + 2)
    return (point["x"] - width, point["x"]) if point["flip"] else (point["x"], point["x"] + width)
