"""How long a large table of votes takes to import, and with how much memory: runs/bench/imports.json.

200,000 rows of made-up English, 180 MB, through the real command line in a process of its own.
"""

import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 200_000


def main(rows: int = ROWS, out: Path = Path("runs/bench/imports.json")) -> dict[str, float]:
    """Write the table, import it, and say what it took."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "votes.csv"
        _write(table, rows)
        command = [sys.executable, "-m", "pipeline.cli", "import", str(table), "--to", str(Path(folder) / "out")]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = {
            "rows": rows,
            "megabytes": round(table.stat().st_size / 1e6, 1),
            "seconds": round(time.monotonic() - started, 1),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6, 1),
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _write(path: Path, rows: int) -> None:
    draw = random.Random(1)
    words = [f"word{number}" for number in range(3000)]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "response_a", "response_b", "annotator", "vote"])
        for number in range(rows):
            prompt, a, b = (" ".join(draw.choices(words, k=length)) for length in (12, 45, 45))
            table.writerow([prompt, a, b, f"annotator{number % 50}", draw.choice(["a", "b", "tie"])])


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
