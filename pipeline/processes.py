"""The processes that do a step's work: started, watched together, and stopped together, whatever ends them.

What is left out: what each is started with (`launch.py`), and what it does (`worker.py`).
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from pipeline.errors import LostRankError, StepFailedError
from pipeline.launch import Process

GRACE_S = 5.0
"""Seconds that a stopped worker has for its last words before it is killed."""

POLL_S = 0.02
"""Seconds between two looks at the workers."""

REASONED = (2, 3, 4, 5)
"""Exit codes of a worker that said what is wrong: those of `pipeline.errors`."""

LOST = LostRankError.exit_code


@dataclass
class _Worker:
    """A started process, first of a process group of its own."""

    rank: int
    process: subprocess.Popen[bytes]
    peak: int = 0
    """Most memory it or a process it waited for ever held, in bytes. On Linux never less than ours when it began."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs. Unlike Popen's own `poll`, this learns the memory it used."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                self.process.returncode = os.waitstatus_to_exitcode(status)
                if self.process.returncode:
                    # What it had started must not outlive it: that would still write, and hold the lock.
                    self._signal(signal.SIGKILL)
        return self.process.returncode

    def stop(self, number: signal.Signals) -> None:
        """Send the signal to it and to all that it started, unless it has ended."""
        if self.poll() is None:
            self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def run_workers(step: str, phase: str, processes: Sequence[Process], lock: int) -> int:
    """Run one phase in these processes. Returns the peak memory of the largest, in bytes.

    Raises:
        StepFailedError: one of them ended badly; the others were stopped.
    """
    workers: list[_Worker] = []
    try:
        for rank, process in enumerate(processes):
            workers.append(_Worker(rank, _start(process, lock)))
        lost_at = math.inf
        while True:
            codes = [worker.poll() for worker in workers]
            failed = _first_to_blame(workers)
            if failed is not None and failed.process.returncode == LOST and None in codes:
                # It only lost touch with another one, which may still be writing down why.
                lost_at = min(lost_at, time.monotonic())
                if time.monotonic() < lost_at + GRACE_S:
                    failed = None
            if failed is not None:
                _fail(step, phase, failed)
            if None not in codes:
                return max(worker.peak for worker in workers)
            time.sleep(POLL_S)
    finally:
        _stop(workers)


def _start(process: Process, lock: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        process.command,
        env=process.environment,
        # The worker dies when this pipe ends, which the kernel sees to if we are killed.
        stdin=subprocess.PIPE,
        # The lock is free when the last process that holds its descriptor is gone, and not before.
        pass_fds=(lock,),
        # Ctrl-C in a terminal reaches us alone; we stop the workers in good order.
        process_group=0,
    )


def _first_to_blame(workers: Sequence[_Worker]) -> _Worker | None:
    """Of those that ended badly, one that gave its reason, else one that died of something, else any."""
    failed = [worker for worker in workers if worker.process.returncode]
    return min(failed, key=lambda worker: _blame(worker.process.returncode), default=None)


def _blame(code: int) -> int:
    return 0 if code in REASONED else 2 if code == LOST else 1


def _fail(step: str, phase: str, worker: _Worker) -> NoReturn:
    code = worker.process.returncode
    again = "What was finished is kept: when the cause is mended, the same command continues from there."
    if code == LOST:
        raise StepFailedError(
            f"{step}: the processes that train together lost touch with one another, see above. {again}"
        )
    if code in REASONED:
        error = StepFailedError(f"{step}: stopped, for the reason above. {again}")
        error.exit_code = code
        raise error
    how = f"exit code {code}, see above"
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += ", as the kernel does when memory runs out"
    raise StepFailedError(f"{step}: its {phase!r} process of rank {worker.rank} ended badly ({how}). {again}")


def _stop(workers: Sequence[_Worker]) -> None:
    """End those that still run: politely, then not. A second signal to us cuts the politeness short."""
    try:
        for worker in workers:
            worker.stop(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    finally:
        for worker in workers:
            worker.stop(signal.SIGKILL)
        while any(worker.poll() is None for worker in workers):
            time.sleep(POLL_S)
        for worker in workers:
            if worker.process.stdin:
                worker.process.stdin.close()


class Stopped(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """SIGINT and SIGTERM become an exception, so that every `finally` runs. Only a main thread can have this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
