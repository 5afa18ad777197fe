"""What a finished run or comparison says on the terminal: who is better, the table, and where the report is.

What is left out: the report itself (`pipeline.report`).
"""

from pathlib import Path

from pipeline.terminal import console


def print_outcome(directory: Path) -> None:
    """The end of the command, from the directory's results.json."""
    from pipeline.ratings import Results
    from pipeline.report.terminal import table

    results = Results.model_validate_json((directory / "results.json").read_text(encoding="utf-8"))
    out = console()
    out.print()
    out.print(results.headline, markup=False, highlight=False)
    out.print()
    out.print(table(results))
    if results.exam and not results.exam["passed"]:
        out.print(f"\n{results.exam['judge']} failed its exam and labelled all the same: see the report", style="red")
    out.print(f"\nreport: {directory / 'report.html'}", markup=False, highlight=False)
