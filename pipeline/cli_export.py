"""`prefloop export RUN STEP ... --to FOLDER [--merge]`: what was trained, for vLLM, transformers and PEFT.

What is left out: what is written (`pipeline.export`).
"""

import argparse
from pathlib import Path
from typing import Any

from pipeline import recipe as recipes
from pipeline.terminal import recipe_of


def add_to(verbs: Any) -> None:
    """The verb `export`."""
    verb = verbs.add_parser("export", help="adapters for vLLM, or merged models, with a model card")
    verb.add_argument("run", type=Path, metavar="RUN", help="a run directory, such as runs/rlaif")
    verb.add_argument("steps", nargs="+", metavar="STEP", help="names of train steps, such as dpo, or round2_dpo")
    verb.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    verb.add_argument("--merge", action="store_true", help="write whole models, not adapters")
    verb.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="of whole weights (bf16)")
    verb.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> None:
    recipe = recipes.load(recipe_of(options.run))
    # Only here, because planning imports every stage, and an error in a recipe should be told before that.
    from pipeline import plan
    from pipeline.export import export
    from pipeline.rounds import made_by, seen_from

    states = plan.open_run(recipe, options.run).states()
    done = {state.step.name: state.path for state in states if state.done}
    last = max((found[0] for name in options.steps if (found := made_by(recipe.train, name))), default=1)
    done = seen_from(last, done)
    serve = export(recipe, done, options.steps, options.to, merge=options.merge, dtype=options.dtype)
    print(f"{options.to}: {', '.join(options.steps)}; serve it from there with\n{serve}")
