"""`prefloop doctor RECIPE`: the checks that every run begins with, alone; the exit code is 2 if one is an error.

Labels are looked at too if the run has them. With `--memory` it is a plan for a machine that need not be this one: what
this one lacks for a run (a key, DeepSpeed) is told and is no error. What is left out: the checks (`pipeline.doctor`).
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from pipeline import recipe as recipes
from pipeline.errors import RecipeError
from pipeline.findings import refuse_errors
from pipeline.terminal import RUNS, console

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "GIB": 2**30, "MIB": 2**20}


def add_to(verbs: Any) -> None:
    """The verb `doctor`."""
    verb = verbs.add_parser("doctor", help="does it fit, what is trained on, is the data clean? 2 if a run would fail")
    verb.add_argument("recipe", type=Path, help="a YAML file, such as recipes/rlaif.yaml")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as train.dpo.max_length=512")
    verb.add_argument("--judge", metavar="NAME", help="who labels: a preset of recipes/judges, or a judge")
    verb.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    verb.add_argument("--memory", metavar="SIZE", help="plan for a GPU of this size, such as 24GB")
    verb.add_argument("--cpu", action="store_true", help="the --memory is that of a machine without a GPU")
    verb.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed (table)")
    verb.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> None:
    recipe = recipes.load(options.recipe, options.overrides, options.judge)
    # As `run` does: what that one would refuse is not to be called fine here, unless it is to run elsewhere.
    recipes.check(recipe, starts=options.memory is None)
    memory = None if options.memory is None else (bytes_of(options.memory), not options.cpu)
    # Only here, because planning imports every stage, and an error in a recipe should be told before that.
    from pipeline import doctor, plan
    from pipeline.report.run_tables import doctor_sheet
    from pipeline.report.sheet import sheet_table

    found = doctor.before(recipe, memory)
    states = plan.open_run(recipe, options.run or RUNS / options.recipe.stem).states()
    done = {state.step.name: state.path for state in states if state.done}
    if {"generate", "label"} <= done.keys():
        found += doctor.after_labels(recipe, done["generate"], done["label"])
    if options.format == "json":
        print(json.dumps([each.model_dump(mode="json") for each in found], indent=2, ensure_ascii=False))
    else:
        console().print(sheet_table(doctor_sheet(found)))
    refuse_errors(found)


def bytes_of(text: str) -> int:
    """The bytes of a size such as `24GB` (decimal, as memory is sold) or `16GiB`.

    Raises:
        RecipeError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in UNITS or not float(found[1]):
        raise RecipeError(f"--memory: {text!r} found; needs to be a size such as 24GB or 16GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])
