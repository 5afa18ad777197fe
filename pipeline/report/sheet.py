"""A table of texts, and how numbers are written in it: the same in HTML, in Markdown and on a terminal.

What is left out: what the tables say (`comparison_tables`, `judge_tables`, `run_tables`).
"""

from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from judges.grading import shown
from pipeline.ratings import Comparison, Results, percent
from pipeline.statistics.win_rate import Estimate

NOTHING = "–"
"""Stands in a table for a number that is not known."""


class Sheet(NamedTuple):
    """A table of texts, the same in HTML and in Markdown. The first `names` columns are words, the rest numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


def sheet_table(sheet: Sheet) -> Table:
    """A sheet as a terminal shows it."""
    shown = Table(box=box.SIMPLE_HEAD, title=Text(sheet.title), title_justify="left", pad_edge=False)
    for place, column in enumerate(sheet.columns):
        shown.add_column(Text(column), justify="left" if place < sheet.names else "right", overflow="fold")
    for row in sheet.rows:
        shown.add_row(*map(Text, row))
    return shown


def verdict(found: Comparison) -> str:
    """What one comparison supports, of `one`: better, worse, or not decisive."""
    if not found.decisive:
        return "not decisive"
    return "better" if found.win_rate > 0.5 else "worse"


def interval_name(results: Results) -> str:
    return f"{100 * results.confidence:g} % interval"


def number(value: float | None, digits: int) -> str:
    """-0.341 -> `−0.34`, with a sign as wide as a digit, and no sign before a zero."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text.replace("-", "−")


def between(low: float, high: float, digits: int) -> str:
    return f"[{number(low, digits)}, {number(high, digits)}]"


def share(value: float | None) -> str:
    return NOTHING if value is None else percent(value)


def estimate(found: Estimate | None) -> str:
    return shown("share", found) if found else NOTHING


def kappa(found: Estimate | None) -> str:
    return f"{number(found.value, 2)} {between(found.low, found.high, 2)}" if found else NOTHING


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def short(value: float) -> str:
    text = f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"
    return text.replace("-", "−", 1) if value < 0 else text


def reasons(abstained: dict[str, int]) -> str:
    counted = [f"{count} {reason}" for reason, count in abstained.items() if count]
    return ", ".join(counted) or "0"


def duration(seconds: float | None) -> str:
    """75.2 -> `1 min 15 s`."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(size: int | None) -> str:
    """1_620_000_000 bytes -> `1.62 GB` (decimal, as memory is sold)."""
    if size is None:
        return NOTHING
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
