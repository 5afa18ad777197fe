"""Reads prompts and another step, named `scripted.learner` in a recipe; writes what it was given."""

from typing import ClassVar, Literal

from pipeline import store
from pipeline.algorithms.base import AlgorithmConfig, Need, TrainRun


class Config(AlgorithmConfig):
    READS: ClassVar[tuple[str, ...]] = ("generate",)

    name: Literal["scripted.learner"] = "scripted.learner"
    teacher: str = "scorer"

    def needs(self) -> tuple[Need, ...]:
        return (Need("teacher", self.teacher, "reward"),)

    def train(self, run: TrainRun) -> None:
        given = {
            "step": run.step,
            "seed": run.seed,
            "base": run.model.base,
            "prompts": [prompt.id for prompt in run.prompts()],
            "teacher": str(run.folder(self.teacher)),
        }
        store.write_json(run.out / "given.json", given)
