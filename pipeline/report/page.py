"""report.html: one file that opens offline and asks nobody for anything.

Tables and plots are markup rendered with autoescape; plots are SVG placed in percentages, so they fit a phone and take
their colours from the page in light and dark alike. The answers side by side are JSON that a small script puts on the
page as text, never as markup.
"""

import base64
import hashlib
import re
from importlib.resources import files

from markupsafe import Markup

from pipeline import refusals
from pipeline.report.curves import charts_of
from pipeline.report.data import ReportData
from pipeline.report.judge_tables import told_by_the_judge
from pipeline.report.plots import bars_of, forest, histogram_of, outcomes_of, scatters
from pipeline.report.samples import browser_data, embedded
from pipeline.report.sheet import Sheet, duration, interval_name
from pipeline.report.templates import template

ASSETS = ("report.css", "report.js")


def page(data: ReportData, sheets: dict[str, Sheet]) -> str:
    style, script = (files("pipeline").joinpath("templates", name).read_text("utf-8") for name in ASSETS)
    return template("report.html.j2", autoescape=True).render(
        data=data,
        sheets=sheets,
        claims=_claims(data.results.headline),
        forest=forest(data.results),
        scatters=scatters(data.results),
        charts={name: found for name, log in data.curves.items() if (found := charts_of(log))},
        histogram=histogram_of(data.labels.confidence) if data.labels else None,
        outcomes=outcomes_of(data.labels) if data.labels else [],
        findings=told_by_the_judge(data.labels) if data.labels else [],
        bars=bars_of(data.steps),
        total_time=duration(sum(step.seconds or 0 for step in data.steps)),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        samples=Markup(embedded(browser_data(data))),
        interval_name=interval_name(data.results),
        refusal_rule=refusals.RULE,
    )


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
