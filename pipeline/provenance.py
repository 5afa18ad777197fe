"""What the steps of a run took, from what the engine wrote beside their folders, and so what each checkpoint took.

What is left out: measuring it (`pipeline.run`).
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from judges.ledger import Spent
from pipeline import store
from pipeline.ratings import TrainingCost
from pipeline.rounds import place_of

LABELLING = ("exam", "label")
"""Steps that ask the labelling judge."""


def of(folder: Path) -> dict[str, Any]:
    """What is known of the making of a published folder; nothing where the file beside it is gone."""
    path = folder.with_name(f"{folder.name}.provenance.json")
    found: dict[str, Any] = store.read_json(path) if path.exists() else {}
    return found


def spending(folder: Path) -> list[Spent]:
    """What judges were charged in a step."""
    return [Spent(**row) for row in of(folder).get("spending", ())]


def upstream(folder: Path) -> dict[str, Path]:
    """The folders of all steps that a published one was made from, directly or not, by their names, the first made
    first. A manifest that is gone ends the way there."""
    found: dict[str, Path] = {}
    for name, made in _inputs(folder):
        found |= {**upstream(made), name: made}
    return found


def cost(folder: Path) -> TrainingCost | None:
    """What the policy in a train step's folder took. None: its times are not known."""
    before = upstream(folder)
    seconds = {name: _seconds(made) for name, made in before.items()}
    own = of(folder)
    if "wall_seconds" not in own or any(map(math.isnan, seconds.values())):
        return None
    return TrainingCost(
        training_seconds=own["wall_seconds"],
        peak_memory_bytes=own["peak_memory_bytes"],
        upstream=tuple(before),
        upstream_seconds=_sum(seconds.values()),
        labelling_seconds=_sum(took for name, took in seconds.items() if _plain(name) in LABELLING),
        judge_usd=round(sum(each.usd for made in (*before.values(), folder) for each in spending(made)), 9),
    )


def _plain(name: str) -> str:
    """What a run of one round and one variant calls this step: without `round2.`, and without a sweep's values."""
    return place_of(name)[1].partition("[")[0]


def _seconds(folder: Path) -> float:
    return float(of(folder).get("wall_seconds", math.nan))


def _inputs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each step that this one read. They are side by side: steps/<name>/<fingerprint>."""
    for name, each in (store.read_manifest(folder) or {}).get("inputs", {}).items():
        yield name, folder.parents[1] / name / each["fingerprint"][:12]


def _sum(seconds: Iterable[float]) -> float:
    return round(math.fsum(seconds), 3)
