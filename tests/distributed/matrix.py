"""Every algorithm, in one process and in two under DDP, ZeRO-2 and ZeRO-3: `make test-distributed [CELLS="dpo bf16"]`.

    runs/bench/distributed.json   {"matrix": {"dpo": {"one": "ok", "zero3": "refused: why", ...}, ...}, "bf16": ...}

`matrix` has NF4 and LoRA, `bf16` LoRA on a base in bf16. Beside them `seconds`, and `gap`: the largest difference of a
loss, step by step, from that of one process. A cell that neither trains nor refuses is "failed: why", and the command
ends with 1. Processes are started warm (`warm.py`), so seconds are those of the work and not of imports.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import make_model, make_tokenizer

from distributed import rig, warm
from pipeline.errors import PrefloopError

OUT = Path("runs/bench/distributed.json")
ROWS = ("sft", "reward_model", "dpo", "kto", "ppo")
COLUMNS: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp": {"gpus": 2},
    "zero2": {"gpus": 2, "zero": 2},
    "zero3": {"gpus": 2, "zero": 3},
}
MODELS = {
    "matrix": {"quantization": "nf4", "dtype": "fp32"},
    "bf16": {"quantization": "none", "dtype": "bf16"},
}


def cell(
    top: Path, base: Path, row: str, launch: dict[str, Any], model: dict[str, str]
) -> tuple[str, list[dict[str, Any]]]:
    """What became of it, and its metrics."""
    config = rig.training(base, row, launch, **model)
    refusals = config.algorithm.refusals(config.launch)
    if refusals:
        return f"refused: {refusals[0]}", []
    try:
        return "ok", rig.metrics(rig.trained(top, config))
    except PrefloopError as error:
        return f"failed: {error}", []


def gap(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float | None:
    """The largest difference of a loss."""
    names = {"loss", "policy_loss", "value_loss"}
    pairs = [(one, other) for one, other in zip(found, expected, strict=False) if len(found) == len(expected)]
    return max((abs(one[name] - other[name]) for one, other in pairs for name in names & one.keys()), default=None)


def main(named: Sequence[str]) -> int:
    """Fill the rows and tables that are named, or all, and write them after each cell."""
    rows = [row for row in ROWS if row in named] or list(ROWS)
    tables = [table for table in MODELS if table in named] or list(MODELS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    report: dict[str, Any] = {name: {row: {} for row in ROWS} for name in (*MODELS, "seconds", "gap")}
    if named and OUT.exists():
        report = json.loads(OUT.read_text())
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with warm.started(), tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        make_model(top / "llama")
        make_tokenizer(top / "llama")
        for table in tables:
            for row in rows:
                one: list[dict[str, Any]] = []
                for column, launch in COLUMNS.items():
                    began = time.monotonic()
                    found, lines = cell(top / f"{table}-{row}-{column}", top / "llama", row, launch, MODELS[table])
                    seconds = round(time.monotonic() - began, 1)
                    one = lines if column == "one" else one
                    report[table][row][column] = found
                    if table == "matrix":
                        report["seconds"][row][column] = seconds
                        report["gap"][row][column] = gap(lines, one)
                    OUT.write_text(json.dumps(report, indent=2) + "\n")
                    print(f"{table:8} {row:14} {column:6} {seconds:6.1f} s  {gap(lines, one)}  {found}", flush=True)
    cells = [each for table in MODELS for row in report[table].values() for each in row.values()]
    return int(any(each.startswith("failed") for each in cells))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
