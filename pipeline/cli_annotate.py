"""`prefloop annotate RUN`: the page where people vote; `prefloop annotate RUN --export FILE`: what they said.

Published steps do not change, so that a run may be at work meanwhile. What is left out: the page (`pipeline.annotate`).
"""

import argparse
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline.errors import DataError


def add_to(verbs: Any) -> None:
    """The verb `annotate`."""
    verb = verbs.add_parser("annotate", help="a page on this machine where people say which answer is better")
    verb.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, a folder with pairs.jsonl, or such a file"
    )
    verb.add_argument("--round", type=int, metavar="N", help="of a run with rounds: whose pairs (the newest)")
    verb.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: a free one)")
    verb.add_argument("--double", type=float, default=0.2, metavar="SHARE", help="of pairs for two people (0.2)")
    verb.add_argument("--control", type=float, default=0.1, metavar="SHARE", help="of pairs drawn at random (0.1)")
    verb.add_argument("--seed", type=int, default=0, help="of what is drawn at random (0)")
    verb.add_argument("--export", type=Path, metavar="FILE", help="write the votes into a file, and serve nothing")
    verb.add_argument("--to-format", metavar="NAME", help="of that file, as for convert (default: CSV, a row a vote)")
    verb.set_defaults(command=_annotate)


def _annotate(options: argparse.Namespace) -> None:
    for name in ("double", "control"):
        if not 0 <= getattr(options, name) <= 1:
            raise DataError(f"--{name}: {getattr(options, name)} found; needs a share from 0 to 1")
    # Only here, because a server is nothing that `--help` needs.
    from pipeline.annotate import material
    from pipeline.annotate.ballots import open_ballots
    from pipeline.annotate.desk import Desk
    from pipeline.annotate.server import serve

    if options.to_format and not options.export:
        raise DataError(f"--to-format: {options.to_format} found without --export FILE; say which file to write")
    if options.round is not None and options.export:
        raise DataError(f"--round: {options.round} found with --export, which writes those on all rounds; leave it out")
    if options.export:
        _export(options.run, options.export, options.to_format)
        return
    pairs, verdicts, number = material.find(options.run, options.round)
    items = material.read(pairs, verdicts, double=options.double, control=options.control, seed=options.seed)
    order = "the least sure first" if verdicts else "in random order: no judge has labelled them"
    which = f" of round {number}" if number > 1 else ""
    with closing(open_ballots(options.run)) as ballots:
        print(f"{len(items):,} pairs{which}, {order}; votes: {ballots.path}", flush=True)
        serve(Desk(items, ballots, options.seed), options.port, lambda address: print(address, flush=True))


def _export(run: Path, path: Path, to_format: str | None) -> None:
    from pipeline.annotate.ballots import open_ballots
    from pipeline.annotate.export import export
    from pipeline.annotate.material import beside, database_of
    from pipeline.cli_import import convert
    from pipeline.importers.base import Options
    from pipeline.importers.collect import collect

    database = database_of(run)
    if not database.is_file() and not beside(run).is_file():
        raise DataError(f"{database}: not there, so nobody has voted; run prefloop annotate without --export first")
    with closing(open_ballots(run)) as ballots:
        if to_format is None:
            print(f"{path}: {export(ballots, path):,} votes")
            return
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "votes.csv"
            export(ballots, table)
            try:
                found = collect([table], "votes", Options(), max_bad=0)
            except DataError as error:
                # Whoever reads this could not look into the table: it is gone.
                told = str(error).replace(str(table), "their table")
                raise DataError(
                    f"{ballots.path}: the votes cannot be written as {to_format}: {told}; --export FILE.csv without "
                    "--to-format writes the table"
                ) from error
            convert(found, to_format, path, "dawid_skene")
