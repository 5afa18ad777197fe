"""Pairs to vote on, and the real command as a process of its own that can be killed."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import store
from pipeline.records import Pair, Prompt, Response, Verdict

ROOT = Path(__file__).parents[1]


def pair_of(number: int, one: str = "", other: str = "") -> Pair:
    prompt = Prompt.model_validate({"id": f"p{number}", "prompt": f"Question {number}?"})
    return Pair.of(
        prompt,
        Response(text=one or f"good answer {number}", source="base", index=0),
        Response(text=other or f"poor answer {number}", source="base", index=1),
    )


def folder_of(top: Path, pairs: Sequence[Pair], p_a: Sequence[float | None] = ()) -> Path:
    """A folder with these pairs, and what a judge said of the first of them."""
    store.make_dirs(top)
    store.write_jsonl(top / "pairs.jsonl", pairs)
    if p_a:
        said = zip(pairs, p_a, strict=False)
        store.write_jsonl(top / "verdicts.jsonl", [verdict_of(pair, p) for pair, p in said])
    return top


def verdict_of(pair: Pair, p_a: float | None) -> Verdict:
    why = "refused" if p_a is None else None
    return Verdict(pair_id=pair.id, judge="planted", fingerprint="0", p_a=p_a, abstained=why)


class Served:
    """`prefloop annotate` at work. `address` is what it printed."""

    def __init__(self, run: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "annotate", str(run), *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.told = self.process.stdout.readline()
        self.address = self.process.stdout.readline().strip()

    @property
    def port(self) -> int:
        return int(self.address.split(":")[2].split("/")[0])

    @property
    def origin(self) -> str:
        return self.address.rsplit("/", 2)[0]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)

    def get(self, path: str = "", **headers: str) -> tuple[int, Any, str]:
        return fetch(self.address + path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, str]:
        """With the headers that the page sends, or with others."""
        told = {"Origin": self.origin, "Content-Type": "application/json"} | headers
        return fetch(self.address + path, json.dumps(body).encode(), told)

    def ask(self, who: str, page: str, path: str = "next", **more: str) -> dict[str, Any]:
        status, _, text = self.post(path, {"annotator": who, "page": page, **more})
        assert status == 200, text
        found: dict[str, Any] = json.loads(text)
        return found


def fetch(url: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any, str]:
    """Status, headers and text of a reply, whatever its status. A header without a value is not sent."""
    request = urllib.request.Request(
        url, body, {name.replace("_", "-"): value for name, value in headers.items() if value}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()
