"""The three tiny steps as a command of its own, to be killed, raced and stopped: `tiny_run.py DIRECTORY [OPTIONS]`."""

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import PrefloopError
from pipeline.run import Run, Step


def steps(top: Path, *, name: str = "likelihood", ranks: int = 0, words: str = "", **options: Any) -> list[Step]:
    """generate -> label -> report over the file `words`, or `top/words.txt`; with `ranks`, label is shared work."""
    options["trace"] = str(top / "trace")
    return [
        Step(
            name="generate",
            identity={"version": 1},
            files=(Path(words) if words else top / "words.txt",),
            options=options,
            finish="tiny_steps:generate",
        ),
        Step(
            name="label",
            identity={"judge": {"name": name, "scale": 10}},
            inputs=("generate",),
            options=options,
            work="tiny_steps:ask" if ranks else None,
            ranks=max(1, ranks),
            finish="tiny_steps:collect" if ranks else "tiny_steps:label",
        ),
        Step(name="report", identity={}, inputs=("label",), options=options, finish="tiny_steps:report"),
    ]


def run(top: Path, **options: Any) -> Run:
    """The run in `top/run`, whose recipe is the name of its judge."""
    recipe = f"judge: {options.get('name', 'likelihood')}\n"
    return Run(top / "run", steps(top, **options), recipe, top / "cache")


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), **json.loads(sys.argv[2])).execute()
    except PrefloopError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
