"""`prefloop slurm RECIPE [key.path=value ...] [--nodes N] [--array N]`: sbatch scripts for the whole run.
`prefloop share RECIPE STEP --task K --tasks N`: what a task of a job array does.

Without an array it is one job for the whole graph, for `| sbatch`: the run engine knows what comes after what, and
continues where a job that was cut short or requeued had stopped. With one it is a script that submits a chain of jobs,
for `| bash`: before each step that samples there is a job for all that comes before it, then the array, whose tasks
answer a share of the prompts each; the next job takes their answers in, and answers itself what is missing. What is
left out: judging on other nodes than the first, and account, partition and time, which `sbatch` is told on its own
command line, or a chain after `bash -s --`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import recipe as recipes
from pipeline.errors import RecipeError
from pipeline.terminal import RUNS

SHELL = "srun --overlap --nodes=1 --ntasks=1 --nodelist={host}"


def add_to(verbs: Any) -> None:
    """The verbs `slurm` and `share`."""
    verb = verbs.add_parser("slurm", help="print an sbatch script that does what a recipe says")
    verb.add_argument("recipe", type=Path, help="a YAML file, such as recipes/rlaif.yaml")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as launch.gpus=8 launch.zero=2")
    verb.add_argument("--nodes", type=int, default=1, metavar="N", help="machines that train together (1)")
    verb.add_argument("--array", type=int, metavar="N", help="tasks that share the prompts of each step that samples")
    verb.set_defaults(command=_slurm)

    verb = verbs.add_parser("share", help="a task of a job array: its share of a step's answers")
    verb.add_argument("recipe", type=Path, help="a YAML file, such as recipes/rlaif.yaml")
    verb.add_argument("step", help="generate, answers, or one of a later round")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="as those of the run")
    verb.add_argument("--task", type=int, required=True, metavar="K", help="which one this is, from 0")
    verb.add_argument("--tasks", type=int, required=True, metavar="N", help="how many there are")
    verb.set_defaults(command=_share)


def _slurm(options: argparse.Namespace) -> None:
    nodes = max(1, options.nodes)
    # Names that stand in for those that Slurm will give, so that a recipe that so many cannot share is refused here.
    named = [f"launch.hosts=[{', '.join(f'node{number}' for number in range(nodes))}]"] if nodes > 1 else []
    recipe = recipes.load(options.recipe, [*options.overrides, *named])
    gpus = max([recipe.launch.gpus, *(step.launch.gpus for step in recipe.train.values() if step.launch)])
    if options.array is None:
        print(script(options.recipe, options.overrides, gpus, nodes), end="")
        return
    if options.array < 1:
        raise RecipeError(f"--array {options.array}: so many tasks answer nothing; give it 1 or more, or leave it out")
    # Only here, because planning imports every stage.
    from pipeline import plan

    steps = [step.name for step in plan.steps(recipe, options.recipe.stem) if step.parted]
    if not steps:
        raise RecipeError(f"--array {options.array}: others' servers sample all answers of this recipe; leave it out")
    print(chain(options.recipe, options.overrides, gpus, nodes, steps, options.array), end="")


def _share(options: argparse.Namespace) -> None:
    recipe = recipes.load(options.recipe, options.overrides)
    recipes.check(recipe, starts=False)
    from pipeline import plan

    plan.open_run(recipe, RUNS / options.recipe.stem).share(options.step, options.task, options.tasks)


def script(recipe: Path, overrides: Sequence[str], gpus: int, nodes: int, before: str | None = None) -> str:
    """The text of the script of a run; sbatch reads the lines that begin with #SBATCH.

    Args:
        before: the step that it ends before. None: it does all.
    """
    until = [] if before is None else ["--before", before]
    sizes = [f"--nodes={nodes}", "--ntasks-per-node=1", f"--gpus-per-node={gpus}", "--output=%x-%j.log"]
    lines = [*_head(recipe, sizes)]
    if nodes > 1:
        lines.append('hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)')
        more = f' "launch.hosts=[$hosts]" {shlex.quote(f"launch.shell={SHELL}")}'
    else:
        more = ""
    return "\n".join([*lines, _exec("run", recipe, *overrides, *until) + more]) + "\n"


def array(recipe: Path, overrides: Sequence[str], step: str, tasks: int) -> str:
    """The text of the script of the tasks that share a step: on a GPU each, wherever there is one."""
    sizes = [f"--array=0-{tasks - 1}", "--nodes=1", "--ntasks=1", "--gpus-per-node=1", "--output=%x-%A_%a.log"]
    words = _exec("share", recipe, step, *overrides, "--tasks", str(tasks))
    return "\n".join([*_head(recipe, sizes), f'{words} --task "$SLURM_ARRAY_TASK_ID"']) + "\n"


def chain(recipe: Path, overrides: Sequence[str], gpus: int, nodes: int, steps: Sequence[str], tasks: int) -> str:
    """The text of a script that submits a run's jobs, with an array for each of these steps. What it is given itself
    it gives to every `sbatch`."""
    lines = ["#!/bin/bash", "set -euo pipefail"]
    after = ""
    for step in steps:
        lines += _submit("before", script(recipe, overrides, gpus, nodes, before=step), after)
        lines += _submit("tasks", array(recipe, overrides, step, tasks), "afterok:${before%%;*}")
        # A task that failed is no matter, its answers are missing and the next job makes them.
        after = "afterok:${before%%;*},afterany:${tasks%%;*}"
    return "\n".join([*lines, *_submit("all", script(recipe, overrides, gpus, nodes), after), 'echo "$all"']) + "\n"


def _submit(name: str, text: str, after: str) -> list[str]:
    """Lines that submit a job and keep its number under this name."""
    waits = f' --dependency="{after}" --kill-on-invalid-dep=yes' if after else ""
    return [f"{name}=$(sbatch --parsable \"$@\"{waits} <<'JOB'", *text.splitlines(), "JOB", ")"]


def _head(recipe: Path, sizes: Sequence[str]) -> list[str]:
    return [
        "#!/bin/bash",
        f"#SBATCH --job-name={recipe.stem}",
        *[f"#SBATCH {size}" for size in sizes],
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "# Two minutes before the time is up the run is told to stop; what is finished is kept.",
        "#SBATCH --signal=B:TERM@120",
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}",
    ]


def _exec(verb: str, recipe: Path, *words: str) -> str:
    # exec, so that the signal reaches the run and not the shell that waits for it.
    return f"exec {shlex.join([sys.executable, '-m', 'pipeline.cli', verb, str(recipe), *words])}"
