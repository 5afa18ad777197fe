"""How the checkpoints stand: everybody against everybody, and all on one scale.

What is left out: the statistics (`pipeline.ratings`, `pipeline.statistics.bradley_terry`) and the drawing
(`pipeline/templates/charts.html.j2`).
"""

import math
from typing import Any

from pipeline.ratings import Comparison, JudgeInfo, Results, interval
from pipeline.report.axes import axis
from pipeline.report.sheet import NOTHING, verdict

ROOMY = 6
"""Checkpoints up to which they are called by their names in a matrix, and its cells have intervals."""
FEW = 8
"""Checkpoints up to which they are called by their names in a drawing; more are numbered."""
MARKS = {"better": "▲", "worse": "▼", "not decisive": ""}


def standing(results: Results) -> list[str]:
    """Names of the checkpoints, strongest first, by the first judge that did not label; as they come if none says."""
    names = [checkpoint.name for checkpoint in results.checkpoints]
    independent = [found for found in results.strengths if not results.labelled(found.judge)]
    for found in independent or results.strengths:
        value = {one.name: one.value for one in found.strengths}
        return sorted(names, key=lambda name: -value.get(name, -math.inf))
    return names


def numbers(results: Results) -> dict[str, str]:
    """Checkpoint -> its number, the strongest first, where there are too many for their names; empty where not."""
    names = standing(results)
    return {name: str(place) for place, name in enumerate(names, start=1)} if len(names) > FEW else {}


def matrices(results: Results) -> list[dict[str, Any]]:
    """Of each judge, a row for each checkpoint: how often it beats the one of the column."""
    names = standing(results)
    if len(names) < 3 or not results.comparisons:
        return []
    return [_matrix(judge, names, results) for judge in results.judges]


def _matrix(judge: JudgeInfo, names: list[str], results: Results) -> dict[str, Any]:
    own = [found for found in results.comparisons if found.judge == judge.name]
    seen = {(found.one, found.other): found for both in own for found in (both, both.swap())}
    return {
        "judge": judge.name,
        "labelled": judge.tag,
        "names": names,
        "numbered": len(names) > ROOMY,
        "rows": [[_cell(one, other, seen.get((one, other)), len(names)) for other in names] for one in names],
    }


def _cell(one: str, other: str, found: Comparison | None, size: int) -> dict[str, str]:
    if found is None:
        return {"rate": "" if one == other else NOTHING, "bounds": "", "mark": "", "said": "", "tone": "self"}
    said = verdict(found)
    depth = min(4, 1 + int(abs(found.win_rate - 0.5) * 10))
    return {
        "rate": f"{100 * found.win_rate:.{int(size <= ROOMY)}f}",
        "bounds": interval(found.low, found.high) if size <= ROOMY else "",
        "mark": MARKS[said],
        "said": said,
        "tone": {"better": f"gain d{depth}", "worse": f"loss d{depth}"}.get(said, "none"),
    }


def ladders(results: Results) -> dict[str, Any] | None:
    """Bradley-Terry's strengths in Elo, a group for each judge, strongest first, all on one scale."""
    if not results.strengths:
        return None
    ends = [_elo(end) for found in results.strengths for one in found.strengths for end in (one.low, one.high)]
    scale = axis([1000.0, *ends])
    groups = [
        {
            "judge": found.judge,
            "labelled": results.tag(found.judge),
            "rows": [
                {
                    "name": one.name,
                    "low": scale.at(_elo(one.low)),
                    "value": scale.at(one.elo),
                    "high": scale.at(_elo(one.high)),
                    "elo": f"{one.elo:.0f}",
                    "bounds": NOTHING if one.name == found.anchor else f"[{_elo(one.low):.0f}, {_elo(one.high):.0f}]",
                    "tone": "none" if one.name == found.anchor else "accent",
                }
                for one in sorted(found.strengths, key=lambda one: -one.value)
            ],
        }
        for found in results.strengths
    ]
    return {"axis": scale, "anchor": results.strengths[0].anchor, "at": scale.at(1000.0), "groups": groups}


def _elo(value: float) -> float:
    return 1000 + 400 / math.log(10) * value
