"""A train step of seconds on the tiny model: its options, its job, and what it leaves."""

import importlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import job_of, preferences_of

from pipeline import store, train
from pipeline.models import ModelConfig
from pipeline.records import Preference
from pipeline.train import Training
from pipeline.worker import Job


def cases(*given: tuple[Any, ...], slow: int) -> list[Any]:
    """The cases as they are, the last `slow` of them marked so."""
    fast = len(given) - slow
    return [*given[:fast], *(pytest.param(*case, marks=pytest.mark.slow) for case in given[fast:])]


def training(tiny: ModelConfig, algorithm: str, quantization: Any = "none", **options: Any) -> Training:
    """Eight updates on four examples each, with a checkpoint after every second."""
    defaults = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 8,
        "save_steps": 2,
    }
    return Training(
        seed=3,
        model=tiny.model_copy(update={"quantization": quantization}),
        algorithm={"name": algorithm, **defaults, **options},  # type: ignore[arg-type]
    )


def prepared(top: Path, config: Training, preferences: list[Preference] | None = None) -> Job:
    """The job of a training step in `top`, on these preferences."""
    label = top / "label"
    store.make_dirs(label)
    store.write_jsonl(label / "preferences.jsonl", preferences_of(12) if preferences is None else preferences)
    return job_of(top, config, step="train.test", inputs={"label": label})


def published(job: Job) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in job.out.iterdir()}


def trained(top: Path, config: Training, preferences: list[Preference] | None = None) -> dict[str, bytes]:
    """The bytes of every file that the step leaves."""
    job = prepared(top, config, preferences)
    train.finish(job)
    return published(job)


def lines(files: dict[str, bytes]) -> list[dict[str, float]]:
    return [json.loads(line) for line in files["metrics.jsonl"].splitlines()]


class Once:
    """Trainings that nobody interrupted: where each was done, and what it left; done when it is first asked for."""

    def __init__(self, tiny: ModelConfig, tops: pytest.TempPathFactory) -> None:
        self.tiny, self.tops = tiny, tops
        self.found: dict[tuple[str, str], tuple[Path, dict[str, bytes]]] = {}

    def __call__(self, algorithm: str, quantization: str = "none") -> tuple[Path, dict[str, bytes]]:
        key = (algorithm, quantization)
        if key not in self.found:
            top = self.tops.mktemp("once")
            self.found[key] = top, trained(top, training(self.tiny, algorithm, quantization))
        return self.found[key]


MOMENTS: dict[str, tuple[str, str, str, Callable[..., int]]] = {
    "between two checkpoints": (
        "transformers.trainer_callback", "CallbackHandler", "on_step_end", lambda _, __, state, *___: state.global_step,
    ),
    "in the middle of a checkpoint": (
        "transformers.trainer", "Trainer", "_save_rng_state", lambda trainer, *_: trainer.state.global_step,
    ),
    "before a checkpoint is sealed": (
        "pipeline.algorithms.checkpoints", "Checkpoints", "seal", lambda _, update, *__: update,
    ),
}  # fmt: skip
"""When a training can be killed: module, class and method that is called then, and the update that it is called at."""


def killed_at(job: Job, moment: str, update: int) -> None:
    """Train in this process, which kills itself by SIGKILL at this moment of this update."""
    module, name, method, update_of = MOMENTS[moment]
    owner = getattr(importlib.import_module(module), name)
    called = getattr(owner, method)

    def die_or_call(*arguments: Any, **options: Any) -> Any:
        if update_of(*arguments) == update:
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*arguments, **options)

    setattr(owner, method, die_or_call)
    train.finish(job)
