"""A train step that learns nothing and makes a policy, named `scripted.pupil` in a recipe."""

from typing import ClassVar, Literal

from pipeline import store
from pipeline.algorithms.base import AlgorithmConfig, TrainRun


class Config(AlgorithmConfig):
    READS: ClassVar[tuple[str, ...]] = ("label",)

    name: Literal["scripted.pupil"] = "scripted.pupil"

    def train(self, run: TrainRun) -> None:
        store.write_text(run.out / "metrics.jsonl", "")
        store.write_json(run.out / "summary.json", {})
