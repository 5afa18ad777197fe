"""`prefloop export RUN STEP ... --to FOLDER [--merge]`: what was trained, for vLLM, transformers and PEFT.

Of a sweep a step has the name that its report has for the policy, `dpo[beta=0.1]`, and the folder is called `dpo`: what
one variant trained is exported as a run of it alone would.

What is left out: what is written (`pipeline.export`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import recipe as recipes
from pipeline.recipe import Recipe
from pipeline.run import Run
from pipeline.terminal import SWEEP, recipe_of


def add_to(verbs: Any) -> None:
    """The verb `export`."""
    verb = verbs.add_parser("export", help="adapters for vLLM, or merged models, with a model card")
    verb.add_argument("run", type=Path, metavar="RUN", help="a directory of a run or a sweep, such as runs/rlaif")
    verb.add_argument(
        "steps",
        nargs="+",
        metavar="STEP",
        help="names of train steps, such as dpo or round2_dpo; of a sweep, of one variant's policies: dpo[beta=0.1]",
    )
    verb.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    verb.add_argument("--merge", action="store_true", help="write whole models, not adapters")
    verb.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="of whole weights (bf16)")
    verb.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> None:
    found = _of_sweep if (options.run / SWEEP).is_file() else _of_run
    recipe, done, called = found(options.run, options.steps)
    # Only here, because it imports what loads models, and an error in a recipe should be told before that.
    from pipeline.export import export

    serve = export(recipe, done, called, options.to, merge=options.merge, dtype=options.dtype)
    print(f"{options.to}: {', '.join(called)}; serve it from there with\n{serve}")


Found = tuple[Recipe, dict[str, Path], dict[str, str]]
"""The recipe; the folder of each step that is done, as a run of the recipe calls it; train step -> its policy."""


def _of_run(run: Path, steps: Sequence[str]) -> Found:
    recipe = recipes.load(recipe_of(run))
    # Only here, because planning imports every stage.
    from pipeline import plan
    from pipeline.rounds import made_by, seen_from

    last = max((found[0] for name in steps if (found := made_by(recipe.train, name))), default=1)
    return recipe, seen_from(last, _done(plan.open_run(recipe, run))), {name: name for name in steps}


def _of_sweep(directory: Path, policies: Sequence[str]) -> Found:
    from pipeline import sweep

    config = sweep.read(directory)
    recipe, names = sweep.variant_of(config, policies)
    plain = {called: name for name, called in names.items()}
    done = {plain.get(name, name): path for name, path in _done(sweep.open_sweep(config, directory)).items()}
    return recipe, done, {plain[f"train.{policy}"].removeprefix("train."): policy for policy in policies}


def _done(run: Run) -> dict[str, Path]:
    return {state.step.name: state.path for state in run.states() if state.done}
