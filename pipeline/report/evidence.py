"""What a judge's probability was computed from, in lines for people: sides by the names of their checkpoints.

A verdict's evidence speaks of sides a and b, and of the exchanged ones under `reverse`. What is left out: the meaning
of each number, which is in the file of the judge (`judges/`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.records import Pair, Verdict

MAX_TEXT = 600
"""Characters of one reply that are shown."""
MAX_LINES = 24
"""Lines of one verdict's evidence."""


def evidence_of(pair: Pair, verdict: Verdict) -> str:
    """Lines of `what: value`; empty where the judge kept nothing but its probability."""
    lines = list(_lines(verdict.evidence, (pair.a.source, pair.b.source), ""))
    if verdict.abstained is not None:
        lines.insert(0, f"abstained: {verdict.abstained}")
    more = len(lines) - MAX_LINES
    return "\n".join([*lines[:MAX_LINES], f"and {more} more lines"] if more > 0 else lines)


def _lines(found: Mapping[str, Any], sides: tuple[str, str], before: str) -> Iterator[str]:
    for key, value in found.items():
        own = (sides[1], sides[0]) if key == "reverse" else sides
        name = f"{before}{_words(key, own)}"
        if isinstance(value, Mapping):
            # What a judge made of others keeps of each of them: their evidence needs no level of its own.
            yield from _lines(value, own, before if key == "evidence" else f"{name}, ")
        elif _of_mappings(value):
            for place, each in enumerate(value, start=1):
                yield from _lines(each, own, f"{name} {place}, ")
        elif value is not None and value != []:
            yield f"{name}: {_value(key, value, own)}"


def _words(key: str, sides: tuple[str, str]) -> str:
    """`score_a` -> `score of dpo`; `p_a` -> `P(dpo is better)`."""
    if key == "p_a":
        return f"P({sides[0]} is better)"
    for end, side in zip(("_a", "_b"), sides, strict=True):
        if key.endswith(end):
            return f"{key.removesuffix(end)} of {side}".replace("_", " ", key.count("_") - 1)
    return key.replace("_", " ")


def _value(key: str, value: Any, sides: tuple[str, str]) -> str:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]} … ({len(value):,} characters)"
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Sequence):
        told = [_value("", each, sides) for each in value]
        if len(told) == 2 and key in ("labels", "logits", "votes"):
            return f"{sides[0]} {told[0]}, {sides[1]} {told[1]}"
        return " | ".join(told)
    return str(value)


def _of_mappings(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)
