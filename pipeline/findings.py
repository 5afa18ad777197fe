"""What the doctor found: where, what, and what to do. The report shows it; an error among it stops a run.

What is left out: looking (`pipeline.doctor`).
"""

from collections.abc import Sequence
from typing import Literal

from pipeline.errors import RecipeError
from pipeline.records import Record

Level = Literal["info", "warning", "error"]


class Finding(Record):
    """One thing that was looked at."""

    level: Level
    """error: a run would fail or its result would be wrong, so it does not begin."""
    check: str
    """What kind of thing: memory, model, template, tokenizer, sampler, data, labels, server, machine."""
    where: str
    """A key path of the recipe, a step, or a file."""
    what: str
    """What was found there."""
    remedy: str = ""
    """What to do about it. Empty: nothing."""


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raises:
    RecipeError: with every error among the findings, a line each.
    """
    errors = [f"{each.where}: {each.what}; {each.remedy}" for each in findings if each.level == "error"]
    if errors:
        count = f"{len(errors)} finding" + ("s" if len(errors) > 1 else "")
        raise RecipeError("\n  ".join([f"doctor: {count} that would spoil the run", *errors]))
