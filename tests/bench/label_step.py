"""The label step as a process of its own, to be measured and killed: `label_step.py DIRECTORY OPTIONS`.

DIRECTORY has pairs.jsonl; what the step leaves is in DIRECTORY/out. OPTIONS is JSON: the judge's block, `budget_usd`,
`run`, `rank` and `world` where several work together, `finish: false` to stop before the files are written. Prints
the seconds that the asking took, those of the processor, and its peak memory.
"""

import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from judges.both_orders import Config as BothOrders
from pipeline import label, store
from pipeline.errors import PrefloopError
from pipeline.recipe import LabelConfig
from pipeline.records import Pair, Prompt, Response
from pipeline.worker import Job


def write_pairs(folder: Path, count: int, length: int = 300) -> None:
    """`count` pairs of answers of about `length` characters with their quality in them, each to a prompt of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    store.write_jsonl(folder / "pairs.jsonl", (pair_of(number, length) for number in range(count)))


def pair_of(number: int, length: int) -> Pair:
    prompt = Prompt.model_validate({"id": f"p{number}", "prompt": f"Question {number}: what is to be done?"})
    one, other = (
        Response(text=f"{word} {number}, quality=0.{digit}. " + filler(length), source=word.lower(), finished=True)
        for word, digit in (("One", number % 10), ("Two", (number + 1 + number % 8) % 10))
    )
    return Pair.of(prompt, one, other)


def filler(length: int) -> str:
    return ("So it is done, one step after the other, and then it is looked at again. " * (length // 70 + 1))[:length]


def job(folder: Path, options: dict[str, Any]) -> Job:
    judge = BothOrders.model_validate({"of": options["judge"]})
    config = label.Labelling(
        judge=judge, label=LabelConfig(max_abstained=1.0), pairing="all", budget_usd=options.get("budget_usd")
    )
    if options.get("finish", True):
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()
    return Job(
        step="label",
        identity=config.identity(),
        options={"config": config.model_dump(mode="json")},
        inputs={"generate": folder},
        files=(),
        out=folder / "out",
        work_dir=folder,
        cache=folder / "cache",
        rank=options.get("rank", 0),
        world=options.get("world", 1),
        run=options.get("run", "bench"),
    )


def main() -> int:
    options = json.loads(sys.argv[2])
    told, started = job(Path(sys.argv[1]), options), time.monotonic()
    try:
        label.work(told)
        seconds = time.monotonic() - started
        if options.get("finish", True):
            label.finish(told)
    except PrefloopError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    cpu = time.process_time()
    print(json.dumps({"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "peak_mb": memory}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
