"""report.html: one file that opens offline and asks nobody for anything.

Tables and plots are markup rendered with autoescape; plots are SVG placed in percentages, so they fit a phone and take
their colours from the page in light and dark alike. The answers side by side are JSON that a small script puts on the
page as text, never as markup.
"""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from pipeline import refusals
from pipeline.report.curves import own_of, shared_of
from pipeline.report.data import ReportData
from pipeline.report.frontier import paths, rewards, scatters
from pipeline.report.judge_tables import told_by_the_judge
from pipeline.report.plots import bars_of, forest, histogram_of, outcomes_of
from pipeline.report.samples import browser_of, embedded
from pipeline.report.sheet import Sheet, duration, interval_name
from pipeline.report.standings import ladders, matrices, numbers
from pipeline.report.templates import template

ASSETS = ("report.css", "report.js")


def page(data: ReportData, sheets: dict[str, Sheet]) -> str:
    style, script = (files("pipeline").joinpath("templates", name).read_text("utf-8") for name in ASSETS)
    browser = browser_of(data)
    return template("report.html.j2", autoescape=True).render(
        data=data,
        sheets=sheets,
        claims=_claims(data.results.headline),
        interval_name=interval_name(data.results),
        **_drawings(data),
        total_time=duration(sum(step.seconds or 0 for step in data.steps)),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        samples=Markup(embedded(browser.data)),
        left_out=browser.left_out,
        refusal_rule=refusals.RULE,
    )


def _drawings(data: ReportData) -> dict[str, Any]:
    """Everything that is drawn, by the name that the template has for it."""
    results, labels = data.results, data.labels
    return {
        "forest": forest(results),
        "matrices": matrices(results),
        "ladders": ladders(results),
        "scatters": [*scatters(results), *rewards(results)],
        "paths": paths(data.curves, numbers(results)),
        "numbered": numbers(results),
        "shared": shared_of(data.curves),
        "charts": own_of(data.curves),
        "histogram": histogram_of(labels.confidence) if labels else None,
        "outcomes": outcomes_of(labels) if labels else [],
        "findings": told_by_the_judge(labels) if labels else [],
        "bars": bars_of(data.steps),
    }


def _claims(headline: str) -> list[tuple[str, str]]:
    """The headline's sentences as (claim, numbers), so that the page can print the first claim large."""
    sentences = re.split(r"(?<=\.) ", headline)
    return [(claim, rest) for claim, _, rest in (sentence.partition(": ") for sentence in sentences)]


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which our one style and one script run, and nothing is ever fetched."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
