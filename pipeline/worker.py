"""The process in which a step does its work: `python -m pipeline.worker job.json work|finish`.

It reads what `pipeline.run` wrote for it, calls the step's function with a `Job`, and ends with an exit code that says
how it went: 0, the code of a PrefloopError whose message it printed, or 1 after a traceback. It dies with the process
that started it, whatever killed that one. What is left out: which step runs when, and what becomes of its output.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.errors import PrefloopError

PROVENANCE = "provenance.json"
"""What a step leaves under this name in its work directory is added to its provenance: what is true of this making of
its output and would not be of another, such as what it cost."""


@dataclass(frozen=True)
class Job:
    """All that a step's function is told."""

    step: str
    """The step's name, for messages."""
    identity: dict[str, Any]
    """The part of the recipe that decides what comes out."""
    options: dict[str, Any]
    """The part that only changes how the work is done."""
    inputs: dict[str, Path]
    """The published directory of each step that this one reads."""
    files: tuple[Path, ...]
    """The data files that this step reads."""
    out: Path
    """What is left here is published; empty when `finish` begins."""
    work_dir: Path
    """What is left here is found again after a kill, and deleted when the step is done."""
    cache: Path
    """A directory shared by all runs, for the journal and for what is dear to make."""
    rank: int
    """Which of the `world` processes this is. In `finish`, those of a train step are a group, and the first writes."""
    world: int
    run: str = ""
    """Whose account paid calls are charged to: the run's (`pipeline.account`)."""
    part: Path | None = None
    """Where a task of a job array keeps what it finds out (`pipeline.parts`). None: in the journal, with the others."""

    @property
    def making(self) -> str:
        """Which of the times that the step is made: where it is, which the engine calls by its name and fingerprint."""
        return self.work_dir.parent.name


def told(job: Job) -> dict[str, Any]:
    """What the step has left for its provenance so far."""
    path = job.work_dir / PROVENANCE
    found: dict[str, Any] = store.read_json(path) if path.exists() else {}
    return found


def tell(job: Job, **found: Any) -> None:
    """Add to the step's provenance, or replace what was said under these names."""
    store.write_json(job.work_dir / PROVENANCE, {**told(job), **found})


def main(arguments: list[str]) -> int:
    """Run one phase of one job. Returns the exit code."""
    path, phase = arguments
    _watch_parent()
    job, target = _read_job(Path(path), phase)
    if job.rank > 0 and job.part is None:  # a task of a job array has a log of its own
        _silence_stdout()
    code = 0
    try:
        _load(target)(job)
    except PrefloopError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
    if code and "RANK" in os.environ:
        # Leaving in good order would wait for the others of the group, which wait for this one.
        sys.stderr.flush()
        os._exit(code)
    return code


def _read_job(path: Path, phase: str) -> tuple[Job, str]:
    """The job, and the name of the function of this phase."""
    told = json.loads(path.read_text(encoding="utf-8"))
    job = Job(
        step=told["step"],
        identity=told["identity"],
        options=told["options"],
        inputs={name: Path(each["path"]) for name, each in told["inputs"].items()},
        files=tuple(Path(name) for name in told["files"]),
        out=path.parent / "out",
        work_dir=path.parent / "work",
        cache=Path(told["cache"]),
        rank=int(os.environ["PREFLOOP_RANK"]),
        world=int(os.environ["PREFLOOP_WORLD"]),
        run=told["run"],
        part=Path(told["part"]) if "part" in told else None,
    )
    return job, told[phase]


def _load(target: str) -> Callable[[Job], None]:
    module, _, function = target.partition(":")
    found: Callable[[Job], None] = getattr(importlib.import_module(module), function)
    return found


def _watch_parent() -> None:
    """Die when stdin ends. It is a pipe that only the parent holds open, so the kernel ends it with the parent."""
    # What this process starts must not read the pipe in our place, so it is moved away from descriptor 0.
    pipe = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_die_at_end_of, args=(pipe,), daemon=True).start()


def _die_at_end_of(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    if os.getpgrp() == os.getpid():
        # Our own children too (data loaders, launchers); the parent made us the first of a group for this.
        with contextlib.suppress(OSError):
            os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _silence_stdout() -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)


if __name__ == "__main__":
    # The module that runs is called `__main__`; steps import `pipeline.worker`. There must be one Job, not two.
    from pipeline.worker import main as canonical_main

    sys.exit(canonical_main(sys.argv[1:]))
