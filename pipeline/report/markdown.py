"""report.md, for a pull request: the verdict, what is doubtful about it, one table; the rest is folded below.

Text from models and files is escaped, so that it is shown as it is. What is left out: drawings and answers, which are
in report.html, and whatever would make the text longer than a comment of a pull request may be.
"""

import re

from markupsafe import Markup

from pipeline import refusals
from pipeline.report.data import ReportData
from pipeline.report.sheet import Sheet
from pipeline.report.templates import template, visible

MAX_LENGTH = 60_000
"""Characters; GitHub takes 65,536 in a comment."""


FOLD = 60
"""Characters that fold a section away."""


def markdown(data: ReportData, sheets: dict[str, Sheet]) -> str:
    first = sheets["summary"]
    sections = [(sheet.title, _table(sheet)) for sheet in sheets.values() if sheet.rows and sheet is not first]
    sections.append(("Recipe", Markup(fenced(data.recipe_yaml, "yaml"))))

    def written(folded: list[tuple[str, Markup]], left_out: list[str]) -> str:
        return template("report.md.j2", autoescape=False, write=markdown_text).render(
            data=data,
            table=_table(first) if first.rows else Markup(""),
            folded=folded,
            left_out=", ".join(left_out),
            measured=bool(sheets["measures"].rows),
            refusal_rule=refusals.RULE,
        )

    room = MAX_LENGTH - len(written([], [title for title, _ in sections]))
    kept, left_out = [], []
    for title, text in sections:
        length = len(title) + len(text) + FOLD
        if length <= room:
            kept.append((title, text))
            room -= length
        else:
            left_out.append(title)
    return written(kept, left_out)


def _table(sheet: Sheet) -> Markup:
    """A sheet in GitHub's Markdown: words to the left, numbers to the right."""
    rule = [" --- " if place < sheet.names else " ---: " for place in range(len(sheet.columns))]
    cells = [[f" {markdown_text(visible(cell))} " for cell in row] for row in (sheet.columns, *sheet.rows)]
    return Markup("\n".join(f"|{'|'.join(row)}|" for row in (cells[0], rule, *cells[1:])))


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: on one line, no markup, no link, no end of a table cell."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"([\\`|*~$])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)
    text = re.sub(r"^([#+>-]|\d+[.)])(?=\s)", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def fenced(text: str, language: str) -> str:
    """A code block that its text cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
