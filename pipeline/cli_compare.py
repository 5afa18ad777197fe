"""`prefloop compare RUN1 RUN2 ... [key.path=value ...]`: any checkpoints against each other, in one report.

What is left out: what a source may be (`pipeline.sources`), and what is done with it (`pipeline.comparison`).
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.cli_outcome import print_outcome

SOURCES = """sources:
  runs/rlaif                     every policy of a run, called rlaif/ppo and so on, and the base
  runs/rlaif:ppo                 one of them
  base                           the base
  adapters/mine                  an adapter (PEFT), or trained weights of the base
  models/merged                  a whole model
  org/name, org/name@revision    an adapter or a whole model of the Hugging Face hub
  mine=adapters/v3               any of them under another name

Prompts, judges and sampling are those of the first run; key.path=value sets another, such as compare.judges=[rules],
compare.prompts.limit=50, compare.sampler.temperature=0.7, model.quantization=none, whole.quantization=nf4."""


def add_to(verbs: Any) -> None:
    """The verb `compare`."""
    verb = verbs.add_parser(
        "compare",
        help="which of any checkpoints is better: of several runs, adapters, whole models",
        epilog=SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("sources", nargs="+", metavar="SOURCE", help="see below; and options as key.path=value")
    verb.add_argument("--out", type=Path, metavar="DIR", help="directory (default: compare-... beside the first run)")
    verb.add_argument("--dry-run", action="store_true", help="say what would be done and why, and do nothing")
    verb.add_argument("--format", choices=("table", "json"), default="table", help="json: results.json (table)")
    verb.set_defaults(command=_compare, overrides=[])


def _compare(options: argparse.Namespace) -> None:
    # Only here, because planning imports every stage, and an error in a word should be told before that.
    from pipeline import comparison
    from pipeline.sources import read_words

    named, overrides = read_words([*options.sources, *options.overrides], comparison.OPTIONS)
    with _stdout_is_for_results() if options.format == "json" else contextlib.nullcontext():
        run = comparison.open_comparison(named, overrides, options.out, asking=not options.dry_run)
        run.execute(dry_run=options.dry_run)
    if options.dry_run:
        return
    if options.format == "json":
        print((run.directory / "results.json").read_text(encoding="utf-8"), end="")
    else:
        print_outcome(run.directory)


@contextlib.contextmanager
def _stdout_is_for_results() -> Iterator[None]:
    """Inside, whatever this process and those that it starts write to standard output goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
