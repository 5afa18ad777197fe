"""Seconds of each part of a step's work, for its provenance.

    phases = Phases(job)
    with phases("loading"):
        ...
    phases.tell()

Of several processes the first one tells, and of a job array's tasks none. What is left out: the whole step's time and
memory (`pipeline.run`).
"""

import contextlib
import time
from collections.abc import Iterator

from pipeline import worker
from pipeline.worker import Job


class Phases:
    """Parts of one process's work, whose times under one name are added up."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What is done inside belongs to this part."""
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def tell(self) -> None:
        """Beside those that the step's earlier processes told."""
        # Tasks of a job array have no file in common that they may write.
        if self.job.rank == 0 and self.job.part is None:
            told = worker.told(self.job).get("phases", {})
            rounded = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
            worker.tell(self.job, phases={**told, **rounded})
