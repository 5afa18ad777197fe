"""`prefloop slurm RECIPE [key.path=value ...] [--nodes N]`: an sbatch script for the whole run.

One job for the whole graph: the run engine knows what comes after what, and continues where a job that was cut short
or requeued had stopped. What is left out: generation and judging on other nodes than the first, and account, partition
and time, which `sbatch` is told on its own command line.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from pipeline import recipe as recipes

SHELL = "srun --overlap --nodes=1 --ntasks=1 --nodelist={host}"


def add_to(verbs: Any) -> None:
    """The verb `slurm`."""
    verb = verbs.add_parser("slurm", help="print an sbatch script that does what a recipe says")
    verb.add_argument("recipe", type=Path, help="a YAML file, such as recipes/rlaif.yaml")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as launch.gpus=8 launch.zero=2")
    verb.add_argument("--nodes", type=int, default=1, metavar="N", help="machines that train together (1)")
    verb.set_defaults(command=_slurm)


def _slurm(options: argparse.Namespace) -> None:
    nodes = max(1, options.nodes)
    # Names that stand in for those that Slurm will give, so that a recipe that so many cannot share is refused here.
    named = [f"launch.hosts=[{', '.join(f'node{number}' for number in range(nodes))}]"] if nodes > 1 else []
    recipe = recipes.load(options.recipe, [*options.overrides, *named])
    print(script(options.recipe, options.overrides, recipe.launch.gpus, nodes), end="")


def script(recipe: Path, overrides: list[str], gpus: int, nodes: int) -> str:
    """The text of the script; sbatch reads the lines that begin with #SBATCH."""
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), *overrides]
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={recipe.stem}",
        f"#SBATCH --nodes={nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={gpus}",
        "#SBATCH --output=%x-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "# Two minutes before the time is up the run is told to stop; what is finished is kept.",
        "#SBATCH --signal=B:TERM@120",
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}",
    ]
    if nodes > 1:
        lines.append('hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)')
        more = f' "launch.hosts=[$hosts]" {shlex.quote(f"launch.shell={SHELL}")}'
    else:
        more = ""
    # exec, so that the signal reaches the run and not the shell that waits for it.
    return "\n".join([*lines, f"exec {shlex.join(command)}{more}"]) + "\n"
