"""The answers side by side, as the JSON that the page carries and its script reads.

What is left out: the script, which puts them on the page as text (`pipeline/templates/report.js`).
"""

import json
from typing import Any

from pipeline.report.data import ReportData


def embedded(value: Any) -> str:
    """JSON that may stand inside `<script>`: with no `<` in it no text can close the element or open a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def browser_data(data: ReportData) -> dict[str, Any]:
    """What the browser of samples reads."""
    names = [checkpoint.name for checkpoint in data.results.checkpoints]
    keys = dict.fromkeys(f"{found.one} vs {found.other}" for found in data.results.comparisons)
    return {
        "checkpoints": list(dict.fromkeys([*names, *(name for sample in data.samples for name in sample.answers)])),
        "judges": [judge.name for judge in data.results.judges],
        "comparisons": [dict(zip(("key", "one", "other"), (key, *key.split(" vs ", 1)), strict=True)) for key in keys],
        "samples": [sample.model_dump(mode="json") for sample in data.samples],
    }
