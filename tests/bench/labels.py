"""`make bench-labels`: how fast labels come from a server that takes 200 ms for each answer, and what memory it takes.

Each pair is asked about in both orders, so the ideal is concurrency / (2 * latency) labels a second. Writes
runs/bench/labels.json: `ratio_64` and `ratio_256`, what was reached as a share of the ideal, and `extra_mb`, the peak
memory for 100,000 pairs above that for 1,000.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from servers import Server, judge_server

from bench.label_step import write_pairs

ROOT = Path(__file__).parents[2]
STEP = Path(__file__).parent / "label_step.py"
LATENCY_S = 0.2


def label(folder: Path, server: Server, concurrency: int, processes: int, finish: bool) -> dict[str, float]:
    """Label the pairs of a folder. The slowest process's seconds, and the largest one's memory in MB."""
    judge = {
        "name": "llm",
        "model": "planted",
        "base_url": server.url,
        "price": {"input": 0.4, "output": 1.6},
        "limits": {"concurrency": concurrency},
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(STEP), str(folder), json.dumps({**options, "judge": judge, "finish": finish})],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for options in ({"rank": rank, "world": processes} for rank in range(processes))
    ]  # fmt: skip
    told = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return {name: max(each[name] for each in told) for name in ("seconds", "cpu_seconds", "peak_mb")}


def speed(concurrency: int, pairs: int, processes: int) -> dict[str, Any]:
    """Labels a second, beside the ideal."""
    with judge_server(latency=LATENCY_S, accuracy=0.8) as server, tempfile.TemporaryDirectory() as name:
        write_pairs(Path(name), pairs)
        told = label(Path(name), server, concurrency, processes, finish=False)
    ideal, reached = concurrency / (2 * LATENCY_S), pairs / told["seconds"]
    return {
        "pairs": pairs,
        "labels_per_second": round(reached, 1),
        "ideal": ideal,
        "ratio": round(reached / ideal, 4),
        "cpu_ms_a_call": round(1000 * told["cpu_seconds"] * processes / (2 * pairs), 3),
    }


def memory(pairs: int) -> float:
    """Peak memory in MB of labelling so many pairs, the writing of the files included."""
    with judge_server(accuracy=0.8) as server, tempfile.TemporaryDirectory() as name:
        write_pairs(Path(name), pairs)
        return label(Path(name), server, 256, 1, finish=True)["peak_mb"]


def main() -> None:
    processes = 2
    figures: dict[str, Any] = {"latency_s": LATENCY_S, "processes": processes, "cores": os.cpu_count()}
    for concurrency, pairs in ((64, 16_000), (256, 48_000)):
        found = speed(concurrency, pairs, processes)
        figures |= {f"ratio_{concurrency}": found["ratio"], f"at_{concurrency}": found}
    small, large = memory(1_000), memory(100_000)
    figures |= {"extra_mb": large - small, "mb_1000": small, "mb_100000": large}
    target = ROOT / "runs" / "bench" / "labels.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
