"""`prefloop sweep RECIPE key.path=value,value ...`: a recipe with several values of some keys, in one report.

What is left out: what is shared and what it is called (`pipeline.sweep`).
"""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline import recipe as recipes
from pipeline.cli_outcome import print_outcome
from pipeline.terminal import console

VALUES = """values:
  train.dpo.beta=0.03,0.1,0.3                     three variants
  train.dpo.beta=0.03,0.1 train.kto.beta=0.1,0.3  four: each value with each; yet two of dpo, and two of kto
  judge=length,rules                              another judge labels for each; all are compared by compare.judges
  generate.candidates=4                           one value: the same for all
A comma inside brackets or quotes is part of a value: train.dpo.loss_type=[sigmoid, sft] is one.

Keys in seed, annotations, generate, judge, exam, label and train can be swept. A step that the values change is called
by them: train.dpo[beta=0.03] makes the policy dpo[beta=0.03]. All others are done once."""


def add_to(verbs: Any) -> None:
    """The verb `sweep`."""
    verb = verbs.add_parser(
        "sweep",
        help="a recipe with several values of some keys: shared steps once, all results in one report",
        epilog=VALUES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("recipe", type=Path, help="a YAML file, such as recipes/rlaif.yaml")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value,value", help="see below")
    verb.add_argument("--run", type=Path, metavar="DIR", help="directory (default: runs/sweep-<recipe>-<keys>)")
    verb.add_argument("--judge", metavar="NAME", help="who labels: a preset of recipes/judges, or a judge")
    verb.add_argument("--most", type=int, metavar="N", help="variants that are meant at most (16)")
    verb.add_argument("--dry-run", action="store_true", help="say which steps would run and which are shared")
    verb.set_defaults(command=_sweep)


def _sweep(options: argparse.Namespace) -> None:
    # Only here, because planning imports every stage.
    from pipeline import sweep

    most = sweep.MOST if options.most is None else options.most
    config = sweep.load(options.recipe, options.overrides, options.judge, most)
    for each in config.variants:
        recipes.check(each.recipe, starts=not options.dry_run)
    directory = options.run or sweep.directory_of(options.recipe, config)
    run, made = sweep.open_sweep(config, directory), sweep.graph(config.variants)
    count = len(config.variants)
    shared = sum(made.users(step.name) == count for step in made.steps)
    print(
        f"{count} variant{'s' if count > 1 else ''}: {len(made.steps)} steps before the comparison, {shared} of them "
        f"shared by all, where runs apart would take {sum(map(len, made.names))}",
        flush=True,
    )
    if not options.dry_run:
        run.execute()
        print_outcome(directory)
        return
    table = Table("step", "variants", "state", box=None, pad_edge=False)
    for state in run.states():
        users = made.users(state.step.name) or count
        what = "done" if state.done else f"would run: {state.why}"
        table.add_row(Text(state.step.name), "all" if users == count else f"{users} of {count}", Text(what))
    console().print(table)
