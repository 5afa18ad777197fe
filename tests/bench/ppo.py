"""`make bench-ppo`: our PPO against TRL's last one, on the same work, in one run, in turn.

    runs/bench/ppo.json      nf4.speedup, nf4.memory_ratio, bf16.speedup, bf16.memory_ratio, overhead, and their parts

The work: the built-in model, 64 prompts, 16 answers an update of at most 48 tokens at temperature 0.7, 4 epochs of
micro-batches of 4 with an optimizer step an epoch, LoRA r 16 on all linear layers, a reward model, one thread. TRL 1.12
(the last with PPO) gets a virtual environment of its own with this one's other packages; its value and reward models
are copies in the same dtype, which is what it can do. A processor without bf16 instructions computes NF4 in fp32, on
both sides; `bf16` is emulated there, and slow. Each side runs in a process of its own, started from this small one so
that the kernel's peak of resident memory is its own, and with glibc told to keep memory, as our workers are, which
helps both. They take turns, an update each, so that a processor that has company meanwhile is as slow for both.
`speedup` compares answers a second without the first update, `memory_ratio` our peak with theirs; `overhead` is our
update over its own generation, forward and backward passes.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_work import TURNS, WORKS

from pipeline.launch import KEEPING_MEMORY

HERE = Path(__file__).parent
TRL = "trl==1.12.0"
KINDS = ("nf4", "bf16")


def main() -> None:
    """Run all sides, or those of the kinds that are named, and write the ratios."""
    out = Path("runs/bench")
    out.mkdir(parents=True, exist_ok=True)
    theirs = trl_python(out / "trl")
    written = out / "ppo.json"
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    found |= {"updates": WORKS["speed"].updates - 1, "threads": 1, "against": TRL}
    for quantization in sys.argv[1:] or KINDS:
        sides = [
            Side.start(python, HERE / script, quantization, "speed", out)
            for python, script in ((sys.executable, "ppo_ours.py"), (str(theirs), "ppo_trl.py"))
        ]
        in_turn(sides)
        ours_side, trl_side = (side.found() for side in sides)
        found[quantization] = {
            "speedup": round(ours_side["episodes_per_s"] / trl_side["episodes_per_s"], 3),
            "memory_ratio": round(ours_side["peak_mb"] / trl_side["peak_mb"], 3),
            "overhead": ours_side.pop("overhead"),
            "ours": ours_side,
            "trl": trl_side,
        }
        print(quantization, json.dumps({k: found[quantization][k] for k in ("speedup", "memory_ratio", "overhead")}))
        found["overhead"] = max(found[kind]["overhead"] for kind in KINDS if kind in found)
        written.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(written)


def trl_python(folder: Path) -> Path:
    """The Python of a virtual environment that has TRL 1.12, and everything else from this one."""
    python = folder.absolute() / "bin" / "python"
    if not (folder / ".ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        (own / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", TRL], check=True)
        (folder / ".ready").touch()
    return python


@dataclass(frozen=True)
class Side:
    """A script at work, in a process of its own."""

    process: subprocess.Popen[bytes]
    result: Path
    go: int
    """Written to, it has a turn."""
    done: int
    """Read from, its turn is over; at its end, so is its work."""

    @classmethod
    def start(cls, python: str, script: Path, quantization: str, work: str, out: Path, seed: int = 1) -> "Side":
        """It waits for its turns; see `in_turn`."""
        result = out / f"{script.stem}.{work}.{quantization}.{seed}.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        environment |= {"PYTHONPATH": str(HERE.parents[1]), **KEEPING_MEMORY}
        (reads, go), (done, writes) = os.pipe(), os.pipe()
        environment[TURNS] = f"{reads} {writes}"
        command = [python, str(script), quantization, work, str(seed), str(result)]
        with open(result.with_suffix(".log"), "wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=(reads, writes)
            )
        os.close(reads)
        os.close(writes)
        return cls(process, result, go, done)

    def found(self) -> dict[str, Any]:
        """What the script wrote when it ended, with its peak memory in MB and its answers a second."""
        _, status, usage = os.wait4(self.process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{self.process.args[1]} failed; see {self.result.with_suffix('.log')}")  # type: ignore[index]
        found: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        seconds = found["seconds"][1:]
        found["episodes_per_s"] = round(found["episodes"] * len(seconds) / sum(seconds), 4)
        found["peak_mb"] = round(usage.ru_maxrss / 1024)
        return found


def in_turn(sides: Sequence[Side]) -> None:
    """Let sides work one at a time, until all have ended."""
    working = list(sides)
    while working:
        for side in list(working):
            os.write(side.go, b".")
            if not os.read(side.done, 1):
                os.close(side.go)
                os.close(side.done)
                working.remove(side)


if __name__ == "__main__":
    main()
