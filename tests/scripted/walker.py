"""A train step whose policy is a number of words, named `scripted.walker` in a recipe: it adds one to where it starts.

Its answers by `scripted.sampler` are so many words longer.
"""

from typing import ClassVar, Literal

from pipeline import store
from pipeline.algorithms.base import AlgorithmConfig, Need, TrainRun

FILE = "walked.json"


class Config(AlgorithmConfig):
    READS: ClassVar[tuple[str, ...]] = ("label",)

    name: Literal["scripted.walker"] = "scripted.walker"
    start_from: str | None = None
    steps: int = 1

    def needs(self) -> tuple[Need, ...]:
        return () if self.start_from is None else (Need("start_from", self.start_from, "policy"),)

    def train(self, run: TrainRun) -> None:
        start = store.read_json(run.folder(self.start_from) / FILE)["words"] if self.start_from else 0
        learned = [preference.chosen.text for preference in run.preferences()] if self.READS else []
        store.write_json(run.out / FILE, {"words": start + self.steps, "seed": run.seed, "learned": learned})
        store.write_text(run.out / "metrics.jsonl", "")
        store.write_json(run.out / "summary.json", {"examples": len(learned), "updates": self.steps})
