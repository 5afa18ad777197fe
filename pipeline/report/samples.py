"""The answers side by side, as the JSON that the page carries and its script reads.

The page stays one file under five megabytes. So a text is cut at `MAX_TEXT` characters, what the judges said is kept
for as many comparisons as fit, and of too many prompts every so-and-so-many-th is kept, which favours none; `left_out`
says all of it. What is left out: the script, which puts them on the page as text (`pipeline/templates/report.js`).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline.report.data import ReportData, Sample
from pipeline.report.standings import standing

MAX_TEXT = 20_000
"""Characters of a prompt's turn or of an answer."""
MAX_BYTES = 3_400_000
"""Of all samples as JSON; the rest of a page takes about a megabyte where there are very many checkpoints."""
NOT_ASKED = -1
"""Stands for the verdict that a judge was not asked for; null is one that it left open."""


class Browser(NamedTuple):
    """What the page carries, and what it says of what it does not."""

    data: dict[str, Any]
    left_out: tuple[str, ...]


def embedded(value: Any) -> str:
    """JSON that may stand inside `<script>`: with no `<` in it no text can close the element or open a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def browser_of(data: ReportData) -> Browser:
    """The samples that fit, with verdicts as numbers in the order of `judges` and `pairs`."""
    results = data.results
    names = [checkpoint.name for checkpoint in results.checkpoints]
    names = list(dict.fromkeys([*names, *(name for sample in data.samples for name in sample.answers)]))
    place = {name: index for index, name in enumerate(names)}
    pairs = list(dict.fromkeys((found.one, found.other) for found in results.comparisons))
    judges = [judge.name for judge in results.judges]

    def packed(evidence: Callable[[tuple[str, str]], bool]) -> list[dict[str, Any]]:
        return [_packed(number, sample, names, judges, pairs, evidence)
                for number, sample in enumerate(data.samples, start=1)]  # fmt: skip

    samples, left_out = _fitted(packed, results.base)
    cut = sum(len(text) > MAX_TEXT for sample in data.samples for text in _texts(sample))
    if cut:
        left_out = (*left_out, f"Texts are cut at {MAX_TEXT:,} characters; {cut:,} were longer.")
    if left_out and data.kept_at:
        left_out = (*left_out, f"The whole is in {' and '.join(data.kept_at)}.")
    carried = {
        "checkpoints": names,
        "first": [place[name] for name in _first(data)],
        "judges": judges,
        "pairs": [[place[one], place[other]] for one, other in pairs],
        "samples": samples,
    }
    return Browser(carried, left_out)


def _first(data: ReportData) -> tuple[str, str] | tuple[()]:
    """The two whose answers are shown first: the strongest against the base, or whatever was compared."""
    results = data.results
    for name in standing(results):
        if name != results.base and results.between(name, results.base):
            return name, str(results.base)
    return (results.comparisons[0].one, results.comparisons[0].other) if results.comparisons else ()


def _packed(
    number: int,
    sample: Sample,
    names: Sequence[str],
    judges: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    evidence: Callable[[tuple[str, str]], bool],
) -> dict[str, Any]:
    keys = [f"{one} vs {other}" for one, other in pairs]
    said = [sample.evidence.get(judge, {}) for judge in judges]
    return {
        "number": number,
        "kind": sample.kind,
        "lang": sample.lang,
        "prompt": [[turn.role, *_cut(turn.content)] for turn in sample.prompt],
        "answers": [_cut(sample.answers[name]) if name in sample.answers else None for name in names],
        "finished": [sample.finished.get(name) for name in names],
        "p": [[_kept(sample.scores.get(judge, {}).get(key, NOT_ASKED)) for key in keys] for judge in judges],
        "why": [
            {place: own[key] for place, key in enumerate(keys) if own.get(key) and evidence(pairs[place])}
            for own in said
        ],
    }


def _cut(text: str) -> list[str | int]:
    """The text, and how long it is where it is not whole."""
    return [text] if len(text) <= MAX_TEXT else [text[:MAX_TEXT], len(text)]


def _kept(p: float | None) -> float | None:
    """Three digits, but never a tie that was none."""
    if p is None or p in (0.5, NOT_ASKED):
        return p
    short = round(p, 3)
    return short if short != 0.5 else 0.5001 if p > 0.5 else 0.4999


def _fitted(
    packed: Callable[[Callable[[tuple[str, str]], bool]], list[dict[str, Any]]], base: str | None
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The first of these that fits: everything; what judges said of the base alone; evenly spread prompts of that."""
    samples = packed(lambda pair: True)
    if _size(samples) <= MAX_BYTES:
        return samples, ()
    samples = packed(lambda pair: base in pair)
    told = (
        f"What the judges said is here for the comparisons with {base}."
        if base
        else "What the judges said is not here."
    )
    sizes = [_size([sample]) for sample in samples]
    if sum(sizes) <= MAX_BYTES:
        return samples, (told,)
    kept = spread(sizes, MAX_BYTES)
    number = f"{len(kept):,} of {len(samples):,} prompts are here, evenly spread over the file: more would not fit."
    return [samples[index] for index in kept], (number, told)


def spread(sizes: Sequence[int], most: int) -> list[int]:
    """Places of as many items as fit into `most`, evenly spread; at least one."""
    count = min(len(sizes), max(1, int(len(sizes) * most / max(1, sum(sizes)))))
    while True:
        kept = [index * len(sizes) // count for index in range(count)]
        if count <= 1 or sum(sizes[index] for index in kept) <= most:
            return kept
        count -= max(1, count // 100)


def _size(samples: Sequence[dict[str, Any]]) -> int:
    return len(embedded(samples).encode())


def _texts(sample: Sample) -> list[str]:
    return [*(turn.content for turn in sample.prompt), *sample.answers.values()]
