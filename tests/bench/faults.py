"""`make bench-faults`: 10,000 pairs against a server that fails in 30 % of all calls, killed 20 times, on a budget.

Writes runs/bench/faults.json: `pairs`, `labelled_once`, `abstained`, `lost`, `asked_twice`, `spend`, `cap`, and what
it took. The server's own list of calls and its own bill are what the books are held against.
"""

import collections
import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from servers import Server, judge_server

from bench.label_step import write_pairs

ROOT = Path(__file__).parents[2]
STEP = Path(__file__).parent / "label_step.py"
PRICE = {"input": 0.4, "output": 1.6}

KILL_AFTER_S = (2.0, 4.0)
"""A run is killed at some instant between these; it needs about two to begin."""


def judge(server: Server, **limits: Any) -> dict[str, Any]:
    """The block of the judge that is asked."""
    limits = {"concurrency": 64, "timeout_s": 2.0, **limits}
    return {"name": "llm", "model": "planted", "base_url": server.url, "price": PRICE, "limits": limits}


def run(folder: Path, block: dict[str, Any], budget: float, kill_after: float | None = None) -> int:
    """The exit code of the label step, killed after so many seconds if it is still at work."""
    command = [sys.executable, str(STEP), str(folder), json.dumps({"judge": block, "budget_usd": budget})]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return process.returncode


def killed(folder: Path, block: dict[str, Any], budget: float, times: int, draw: random.Random) -> list[int]:
    """Exit codes of runs that are killed at random instants, until that has been done so often or there is no more
    to kill: the work is done, or the budget."""
    exits: list[int] = []
    while len(exits) < times:
        exits.append(run(folder, block, budget, draw.uniform(*KILL_AFTER_S)))
        if exits[-1] != -signal.SIGKILL:
            break
    return exits


def measure(pairs: int, kills: int, cap: float, seed: int = 1, **limits: Any) -> dict[str, Any]:
    """The figures of a run of so many pairs that is killed so many times.

    Args:
        cap: US dollars. The first half of the kills happen under 60 % of it, so that the cap is met on the way.
    """
    draw = random.Random(seed)
    options = {"faults": 0.3, "accuracy": 0.8, "bias": 1.5, "unreadable": 0.03, "latency": 0.02}
    with judge_server(**options) as server, tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()
        write_pairs(folder, pairs)
        block = judge(server, **limits)
        exits = killed(folder, block, 0.6 * cap, kills // 2, draw)
        exits.append(run(folder, block, 0.6 * cap))
        under_low_cap = spent(folder)
        exits += killed(folder, block, cap, kills - exits.count(-signal.SIGKILL), draw)
        exits.append(run(folder, block, cap))
        figures = {
            "pairs": pairs,
            **outcome(folder, pairs),
            **books(folder, server),
            "cap": cap,
            "spend_under_low_cap": under_low_cap,
            "low_cap": 0.6 * cap,
            "kills": sum(code == -signal.SIGKILL for code in exits),
            "stops_by_budget": exits.count(5),
            "last_exit": exits[-1],
            "seconds": round(time.monotonic() - started, 1),
        }
    return figures


def outcome(folder: Path, pairs: int) -> dict[str, Any]:
    """What became of the pairs, by the file that the step left."""
    path = folder / "out" / "verdicts.jsonl"
    verdicts = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    times = collections.Counter(verdict["pair_id"] for verdict in verdicts)
    reasons = collections.Counter(verdict["abstained"] for verdict in verdicts if verdict.get("abstained"))
    return {
        "labelled_once": sum(
            1 for verdict in verdicts if verdict.get("p_a") is not None and times[verdict["pair_id"]] == 1
        ),
        "abstained": dict(reasons),
        "lost": pairs - len(times),
        "labelled_twice": sum(count > 1 for count in times.values()),
    }


def books(folder: Path, server: Server) -> dict[str, Any]:
    """The client's books held against the server's."""
    with sqlite3.connect(folder / "cache" / "journal.sqlite") as journal:
        rows = journal.execute("SELECT key, outcome FROM calls").fetchall()
    answered = collections.Counter(key for key, outcome in rows if outcome in ("ok", "refused", "filtered"))
    by_server = collections.Counter(key for key, kind in server.tell("calls") if kind in ("ok", "refusal", "filter"))
    again = sum(count - 1 for count in by_server.values())
    in_flight = sum(outcome is None for _, outcome in rows)
    stats = server.tell("stats")
    return {
        # An answer that was in the books and was asked for again, and any that was answered twice and was not among
        # the calls that a kill cut off.
        "asked_twice": sum(count - 1 for count in answered.values()) + max(0, again - in_flight),
        "answered_again_after_a_kill": again,
        "calls_cut_off_by_kills": in_flight,
        "calls": stats["calls"],
        "spend": spent(folder),
        "bill": stats["bill"] / 1e9,
    }


def spent(folder: Path) -> float:
    with sqlite3.connect(folder / "cache" / "journal.sqlite") as journal:
        (nano,) = journal.execute("SELECT charged FROM accounts").fetchone()
    return float(nano / 1e9)


def main() -> None:
    figures = measure(pairs=10_000, kills=20, cap=9.0)
    target = ROOT / "runs" / "bench" / "faults.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
