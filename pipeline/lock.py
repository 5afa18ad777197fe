"""A directory that one command at a time works in. The kernel holds the lock, so a killed command leaves none behind.

What is left out: several machines, which a lock of this kind keeps apart only where the file system says so.
"""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import RunLockedError

GRACE_S = 5.0
"""Seconds that a lock may outlive its holder."""

POLL_S = 0.02
"""Seconds between two tries."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Hold the run directory; yields the descriptor that holds it. The kernel lets go when all who have it are gone.

    Raises:
        RunLockedError: another process holds it.
    """
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(descriptor, directory)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": shlex.join(sys.argv),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # For the message of the next one only; the lock is the kernel's.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, directory: Path) -> None:
    deadline = time.monotonic() + GRACE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(descriptor)
            # The workers of a killed run are about to notice; the next run need not trouble anybody with it.
            if _is_alive(holder) or time.monotonic() > deadline:
                raise RunLockedError(_who(directory, holder)) from None
            time.sleep(POLL_S)


def _holder(descriptor: int) -> dict[str, Any]:
    """Who wrote itself into the lock file; empty if it is about to."""
    try:
        found: dict[str, Any] = json.loads(os.pread(descriptor, 1 << 16, 0))
    except ValueError:
        return {}
    return found


def _is_alive(holder: Mapping[str, Any]) -> bool:
    if not holder or holder["host"] != socket.gethostname():
        return bool(holder)
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _who(directory: Path, holder: Mapping[str, Any]) -> str:
    if not _is_alive(holder):
        return f"{directory}: what a killed run had started still runs here; see who holds {directory / '.lock'}"
    return (
        f"{directory}: process {holder['pid']} on {holder['host']} works here since {holder['since']} "
        f"({holder['command']}); wait for it, or stop it"
    )
