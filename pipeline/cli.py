"""The command line: `prefloop run RECIPE [key.path=value ...]`, `prefloop status RUN`, `prefloop schema`,
`prefloop judge exam | cost | agree` (`pipeline.cli_judge`), `prefloop annotate RUN` (`pipeline.cli_annotate`),
`prefloop import | convert` (`pipeline.cli_import`), `prefloop doctor RECIPE` (`pipeline.cli_doctor`),
`prefloop export RUN STEP` (`pipeline.cli_export`), `prefloop compare RUN RUN` (`pipeline.cli_compare`),
`prefloop sweep RECIPE` (`pipeline.cli_sweep`), and `prefloop slurm | share RECIPE` (`pipeline.cli_slurm`).

Exit codes: 0 done; 2 the recipe, the data or a judge needs mending (the message says where and how); 3 another process
is at work in the run directory; 4 a step failed (the same command continues); 5 the next paid call could pass the
budget; 130 and 143 stopped by a signal; 141 whoever read the output (`| head`) had enough of it.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline import cli_annotate, cli_compare, cli_doctor, cli_export, cli_import, cli_judge, cli_slurm, cli_sweep
from pipeline import recipe as recipes
from pipeline.cli_outcome import print_outcome
from pipeline.errors import DataError, PrefloopError
from pipeline.run import Run, State
from pipeline.terminal import COMPARISON, RUNS, SWEEP, recipe_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    try:
        code = _main(arguments)
        sys.stdout.flush()  # here, where it can be caught that nobody reads
    except BrokenPipeError:
        # Python writes what is left at its end once more, and that error could not be caught.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _main(arguments: Sequence[str] | None) -> int:
    # As `python -m` does, by which the workers are started: a judge of one's own is found here if it is found there.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    parser = _parser()
    # argparse takes no positional arguments after an option (`run a.yaml --run DIR seed=2`); they come back as unknown.
    options, late = parser.parse_known_args(arguments)
    if any(word.startswith("-") or not hasattr(options, "overrides") for word in late):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        options.overrides = [*options.overrides, *late]
    try:
        return int(options.command(options) or 0)
    except PrefloopError as error:
        if str(error):
            print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        refused = error.filename2 or error.filename  # a file is renamed to what the user named
        if not isinstance(refused, str | Path) or not _is_named(Path(refused).absolute(), options):
            raise
        print(f"{refused}: {error.strerror}; check what is there and who may use it, or name another", file=sys.stderr)
        return DataError.exit_code


def _is_named(refused: Path, options: argparse.Namespace) -> bool:
    """Whether the path that the system refused is one that the user named, or is above or right beside or in it.

    Any other is a defect of ours, whose traceback is needed.
    """
    for value in [RUNS, *vars(options).values()]:
        for named in value if isinstance(value, list) else [value]:
            if isinstance(named, Path) and _are_near(refused, named.absolute()):
                return True
    return False


def _are_near(refused: Path, named: Path) -> bool:
    # A file is written under another name beside it first.
    return named.is_relative_to(refused) or refused.is_relative_to(named) or refused.parent == named.parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefloop", description="From prompts to which of your policy's checkpoints is better, and by how much."
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    run = verbs.add_parser("run", help="do what a recipe says; what is done already is not done again")
    run.add_argument("recipe", type=Path, help="a YAML file, such as recipes/rlaif.yaml")
    run.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as train.dpo.beta=0.05")
    run.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    run.add_argument("--judge", metavar="NAME", help="who labels: a preset of recipes/judges, or a judge")
    run.add_argument("--dry-run", action="store_true", help="say what would be done and why, and do nothing")
    run.add_argument("--before", metavar="STEP", help="do only what comes before this step")
    run.set_defaults(command=_run)

    status = verbs.add_parser("status", help="what of a run is done, and what would run and why")
    status.add_argument("run", type=Path, help="a run directory, such as runs/rlaif")
    status.set_defaults(command=_status)

    cli_judge.add_to(verbs)
    cli_annotate.add_to(verbs)
    cli_import.add_to(verbs)
    cli_doctor.add_to(verbs)
    cli_export.add_to(verbs)
    cli_compare.add_to(verbs)
    cli_slurm.add_to(verbs)
    cli_sweep.add_to(verbs)

    schema = verbs.add_parser("schema", help="print the JSON schema of recipes, or of results.json")
    schema.add_argument("of", nargs="?", choices=("recipe", "results"), default="recipe", help="(recipe)")
    schema.set_defaults(command=_schema)
    return parser


def _run(options: argparse.Namespace) -> None:
    recipe = recipes.load(options.recipe, options.overrides, options.judge)
    recipes.check(recipe, starts=not options.dry_run)
    directory = options.run or RUNS / options.recipe.stem
    run = _open(recipe, directory)
    run.execute(dry_run=options.dry_run, before=options.before)
    if not options.dry_run and options.before is None:
        print_outcome(directory)


def _status(options: argparse.Namespace) -> None:
    if (options.run / COMPARISON).is_file():
        from pipeline.comparison import reopen

        _show(reopen(options.run).states())
    elif (options.run / SWEEP).is_file():
        from pipeline import sweep

        _show(sweep.reopen(options.run).states())
    else:
        _show(_open(recipes.load(recipe_of(options.run)), options.run).states())


def _schema(options: argparse.Namespace) -> None:
    if options.of == "results":
        from pipeline.ratings import schema

        found = schema()
    else:
        found = recipes.schema()
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _open(recipe: recipes.Recipe, directory: Path) -> Run:
    # Only here, because planning imports every stage, and an error in a recipe should be told before that.
    from pipeline import plan

    return plan.open_run(recipe, directory)


def _show(states: Sequence[State]) -> None:
    table = Table("step", "state", box=None, pad_edge=False)
    for state in states:
        table.add_row(state.step.name, "done" if state.done else f"would run: {state.why}")
    Console(markup=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
