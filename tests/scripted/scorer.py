"""A train step that makes no policy, named `scripted.scorer` in a recipe."""

from typing import ClassVar, Literal

from pipeline import store
from pipeline.algorithms.base import AlgorithmConfig, Product, TrainRun


class Config(AlgorithmConfig):
    MAKES: ClassVar[Product] = "reward"

    name: Literal["scripted.scorer"] = "scripted.scorer"

    def train(self, run: TrainRun) -> None:
        store.write_text(run.out / "metrics.jsonl", "")
        store.write_json(run.out / "summary.json", {})
