"""Servers for tests, each a process of its own on this machine."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Server:
    """A judge server that is running."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"

    def tell(self, what: str) -> Any:
        """What it says at /stats, /calls or /heads."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/{what}") as response:
            return json.load(response)


@contextmanager
def judge_server(**options: Any) -> Iterator[Server]:
    """A judge server with these options of `planted.py`, stopped at the end."""
    given = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, str(Path(__file__).parent / "planted.py"), *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Server(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
