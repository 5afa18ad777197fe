"""report.md: the tables for a pull request. Text from models and files is escaped, so that it is shown as it is."""

import re
from typing import Any

from markupsafe import Markup

from pipeline import refusals
from pipeline.report.data import ReportData
from pipeline.report.sheet import Sheet
from pipeline.report.templates import template


def markdown(data: ReportData, sheets: dict[str, Sheet]) -> str:
    # Every value that the template prints passes `markdown_text`; only what is marked safe is printed as it is.
    return template("report.md.j2", autoescape=False, finalize=_value).render(
        data=data,
        sheets=[sheet for sheet in sheets.values() if sheet.rows],
        confidence=data.labels.confidence if data.labels else (),
        recipe=Markup(fenced(data.recipe_yaml, "yaml")),
        refusal_rule=refusals.RULE,
    )


def _value(value: Any) -> Any:
    return markdown_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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
