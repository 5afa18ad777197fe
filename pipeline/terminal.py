"""What the verbs of the command line share: where runs are, and how wide a table may be.

What is left out: progress (`pipeline.progress`), and what a verb does (`pipeline.cli` and its parts).
"""

import sys
from pathlib import Path

from rich.console import Console

from pipeline.errors import DataError

RUNS = Path("runs")
"""Where runs are kept unless `--run` says otherwise."""

COMPARISON = "comparison.yaml"
"""What the directory of a comparison has in the place of a run's recipe.yaml."""

SWEEP = "sweep.yaml"
"""The same of a sweep."""

WIDTH = 100
"""Columns where there is no terminal to ask."""


def console() -> Console:
    """As wide as the terminal, or as `WIDTH` where there is none."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def recipe_of(run: Path) -> Path:
    """The recipe that a run directory was made from.

    Raises:
        DataError: it is no run directory.
    """
    path = run / "recipe.yaml"
    if (run / COMPARISON).is_file():
        raise DataError(
            f"{run}: is a comparison, in which nothing is trained; name one of the runs in its {COMPARISON}"
        )
    if (run / SWEEP).is_file():
        raise DataError(
            f"{run}: is a sweep, which has a recipe for each variant ({SWEEP} has them); name a run. Sweeps are what "
            "status reads, and export, which takes policies as their report calls them, such as dpo[beta=0.1]"
        )
    if not path.is_file():
        raise DataError(f"{run}: not a run directory (it has no recipe.yaml); runs are in {RUNS}/")
    return path
