"""The times of a step's parts are in its provenance: added up by name, beside what else the step told."""

import dataclasses
from pathlib import Path

import pytest

from pipeline import worker
from pipeline.phases import Phases
from pipeline.worker import Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("answers", {}, {}, {}, (), tmp_path / "out", tmp_path, tmp_path / "cache", rank=0, world=2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Readings of the clock, each taken once."""
    readings: list[float] = []
    monkeypatch.setattr("pipeline.phases.time.monotonic", lambda: readings.pop(0))
    return readings


def test_times_under_one_name_are_added_up(job: Job, clock: list[float]) -> None:
    clock += [10.0, 11.5, 20.0, 20.25, 30.0, 34.0]
    phases = Phases(job)
    for name in ("loading", "generation", "loading"):
        with phases(name):
            pass
    phases.tell()
    assert worker.told(job) == {"phases": {"loading": 5.5, "generation": 0.25}}


def test_a_later_process_of_the_step_adds_its_own_and_what_else_was_told_stays(job: Job, clock: list[float]) -> None:
    clock += [0.0, 1.0, 5.0, 7.0]
    worker.tell(job, spending=["a row"])
    for name in ("judging", "statistics"):
        phases = Phases(job)
        with phases(name):
            pass
        phases.tell()
    assert worker.told(job) == {"spending": ["a row"], "phases": {"judging": 1.0, "statistics": 2.0}}


def test_of_several_processes_the_first_one_tells(job: Job) -> None:
    phases = Phases(dataclasses.replace(job, rank=1))
    with phases("generation"):
        pass
    phases.tell()
    assert worker.told(job) == {}
